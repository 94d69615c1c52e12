"""The LoRA-XS method: checkpoints, SVD, the PEFT tuner, adapters on disk. No pandas, no user interface."""
