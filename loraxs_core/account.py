"""The account of a passage: whether every tensor of a source found its place, and every tensor of a result came from a file.

Loading, converting, merging and exporting each carry tensors from files into something else. What fits nowhere is easily dropped
there, and what is in no file easily made up, without a word. Each of them draws up an `Account` of it and refuses what does not
balance. Knows names and shapes; neither PEFT nor transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from loraxs_core.errors import AdapterError, WorkbenchError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Account:
    """What became of the tensors of `source` in `result`, both as the user calls them.

    total: how many tensors the source has. unplaced: those of the source that have no place in the result. unfilled: those of the
    result that came from no file. misfits: name -> (shape in the source, shape of the place).
    """

    source: str
    result: str
    total: int
    unplaced: tuple[str, ...] = ()
    unfilled: tuple[str, ...] = ()
    misfits: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)

    @property
    def balances(self) -> bool:
        return not (self.unplaced or self.unfilled or self.misfits)

    def refuse(self, advice: str, error: type[WorkbenchError] = AdapterError) -> None:
        """Raises `error` in one sentence that ends in `advice`, with the count and two names, unless the account balances."""
        if self.misfits:
            name, (here, there) = next(iter(self.misfits.items()))
            more = f", and {len(self.misfits) - 1} more do not fit" if len(self.misfits) > 1 else ""
            raise error(
                f"{name} is {shape_text(here)} in {self.source} and {shape_text(there)} in {self.result}{more}; {advice}"
            )
        if self.unplaced:
            raise error(
                f"{len(self.unplaced)} of the {counted(self.total, 'tensor')} of {self.source} "
                f"{'has' if len(self.unplaced) == 1 else 'have'} no place in {self.result}: {some(self.unplaced)}; {advice}"
            )
        if self.unfilled:
            raise error(
                f"{counted(len(self.unfilled), 'tensor')} of {self.result} {'is' if len(self.unfilled) == 1 else 'are'} not in "
                f"{self.source}: {some(self.unfilled)}; {advice}"
            )


def balance(source: str, held: Mapping[str, Shape], result: str, places: Mapping[str, Shape]) -> Account:
    """The account of tensors `held` (name -> shape) in `source` against the `places` (name -> shape) of `result`, by name."""
    return Account(
        source,
        result,
        len(held),
        unplaced=tuple(name for name in held if name not in places),
        unfilled=tuple(name for name in places if name not in held),
        misfits={
            name: (tuple(shape), tuple(places[name]))
            for name, shape in held.items()
            if name in places and tuple(shape) != tuple(places[name])
        },
    )


def some(names: Collection[str]) -> str:
    """Two of `names`, and that there are more.

    >>> some(["a", "b", "c", "d"])
    'a, b and 2 more'
    """
    first = list(names)[:2]
    more = len(names) - len(first)
    return f"{', '.join(first)} and {more} more" if more else " and ".join(first)


def counted(number: int, what: str) -> str:
    """
    >>> counted(1, "tensor"), counted(2, "tensor")
    ('1 tensor', '2 tensors')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a single number"
