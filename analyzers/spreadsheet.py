"""CSV that a spreadsheet shows as it is: no cell is taken for a formula, whoever wrote its words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# What makes a formula of a cell in the usual spreadsheets, full-width forms included (https://owasp.org/www-community/attacks/CSV_Injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def csv(frame: pd.DataFrame) -> str:
    """`frame` as CSV. Text cells and titles that begin like a formula get an apostrophe in front; numbers stay numbers."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    guarded = frame.copy()
    for position in range(guarded.shape[1]):
        cells = guarded.iloc[:, position]
        if not (is_numeric_dtype(cells) or is_bool_dtype(cells)):
            guarded.isetitem(position, cells.astype(object).map(cell))
    guarded.columns = [cell(title) for title in guarded.columns]
    return guarded.to_csv(index=False)


def cell(value: object) -> object:
    """`value` for one cell: text that begins like a formula, spaces in front aside, with an apostrophe; all else as it is.

    A carriage return becomes a line end, which is quoted: bare, it would begin a row, and so a cell.

    >>> cell("=1+1"), cell(-1), cell("a-b")
    ("'=1+1", -1, 'a-b')
    """
    if not isinstance(value, str):
        return value
    guarded = f"'{value}" if value.lstrip(" ").startswith(FORMULA) else value
    return guarded.replace("\r\n", "\n").replace("\r", "\n")
