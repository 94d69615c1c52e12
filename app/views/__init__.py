"""One file a page, in the order of the work. No maths: each calls an analyzer and a chart.

Not called `pages`: Streamlit takes a folder of that name beside the entry point for scripts of its own, and runs one of them alone
when its address is opened before the entry point ran.
"""
