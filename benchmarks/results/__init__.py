"""The proof kept as data: `python -m benchmarks.results` trains what is lacking, `python -m benchmarks.results.page` writes docs/results.md."""
