"""What an estimate itself costs: a 70B model needs neither its weights nor much memory of the machine that asks."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 4 * 2**30

ESTIMATE_70B = """
import json, resource
from pathlib import Path
from analyzers.memory import MemorySettings, estimate_memory
from loraxs_core.architecture import inventory_from_config
from sample_models import open_model

config = open_model("llama-3-8b").config | {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672,
}
model = inventory_from_config(config, "70B")
found = estimate_memory(model, MemorySettings(method="lora", rank=16, batch=1, sequence=2048), use_cache=False)
# Linux counts the peak of the process that started this one among ru_maxrss; VmHWM is this one's own.
own = Path("/proc/self/status")
lines = own.read_text().splitlines() if own.exists() else []
peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
rss = (peaks or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] * 1024
print(json.dumps({"rss": rss, "parameters": model.parameters, "peak": found.peak_reserved, "how": found.how}))
"""


def test_a_70b_model_is_estimated_in_less_than_4_gib():
    """In a process of its own, so that its peak is that of this estimate, imports included."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", ESTIMATE_70B], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(answer.stdout)
    assert found["how"] == "extrapolated"
    assert 69e9 < found["parameters"] < 72e9
    assert found["peak"] > 2 * found["parameters"]  # more than its weights in bf16
    assert found["rss"] < LIMIT
