"""Evidence for rank plans: `python -m benchmarks.planner` trains, `python -m benchmarks.planner.report` reads what was trained."""
