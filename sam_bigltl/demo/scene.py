"""What a user has asked for on one photograph, as values that never change, and the history of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.files import encodable
from ..errors import InputError
from ..predict.segment import Prompt

_MOST_ITEMS = 64
_MOST_POINTS = 64
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Item:
    """One object.

    Attributes:
        name: shown, and written into downloads.
        colour: index for `visualize.colour`.
        prompt: its points and its box; empty at first.
        choice: which of the three masks, or None for the one with the highest predicted IoU.
    """

    name: str
    colour: int
    prompt: Prompt = field(default_factory=Prompt)
    choice: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing points to it yet."""
        return self.prompt.box is None and not self.prompt.points


@dataclass(frozen=True)
class Scene:
    """Objects and which of them the next click is for.

    Every method returns another scene. There is always an object.
    """

    items: tuple[Item, ...] = (Item("object 1", 0),)
    active: int = 0
    made: int = 1  # objects ever made, so that names and colours do not come twice

    @property
    def current(self) -> Item:
        """The object that the next click is for."""
        return self.items[self.active]

    def with_point(self, x: float, y: float, label: int) -> Scene:
        """One more point for the active object: pixels of the photograph, label 1 object, 0 background."""
        prompt = self.current.prompt
        if len(prompt.points) >= _MOST_POINTS:
            raise InputError(f"an object takes {_MOST_POINTS} points at most: undo some, or start a new object")
        return self._changed(
            prompt=replace(prompt, points=(*prompt.points, (x, y)), labels=(*prompt.labels, label)), choice=None
        )

    def with_box(self, x0: float, y0: float, x1: float, y1: float) -> Scene:
        """Another box for the active object, from any two opposite corners."""
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            raise InputError("that box has no area: drag from one corner of the object to the opposite one")
        return self._changed(prompt=replace(self.current.prompt, box=box), choice=None)

    def with_choice(self, index: int) -> Scene:
        """Mask `index` of the three for the active object."""
        if self.current.is_empty:
            raise InputError("there is no mask to choose yet: click on the object first")
        return self._changed(choice=index)

    def with_item(self) -> Scene:
        """A new object, which is then active; where the active one is still empty, nothing changes."""
        if self.current.is_empty:
            return self
        if len(self.items) >= _MOST_ITEMS:
            raise InputError(f"there are {_MOST_ITEMS} objects already: remove one first")
        item = Item(f"object {self.made + 1}", self.made)
        return Scene((*self.items, item), len(self.items), self.made + 1)

    def without(self, index: int) -> Scene:
        """Object `index` is gone; after the last one there is a new empty one."""
        items = self.items[:index] + self.items[index + 1 :]
        if not items:
            return Scene((Item(f"object {self.made + 1}", self.made),), 0, self.made + 1)
        return replace(self, items=items, active=min(self.active - (index < self.active), len(items) - 1))

    def selected(self, index: int) -> Scene:
        """Object `index` is the active one."""
        return replace(self, active=index)

    def renamed(self, index: int, name: str) -> Scene:
        """Object `index` has another name."""
        name = encodable(" ".join(name.split())[:_LONGEST_NAME])
        if not name:
            raise InputError("a name needs at least one letter")
        items = list(self.items)
        items[index] = replace(items[index], name=name)
        return replace(self, items=tuple(items))

    def _changed(self, **values: Any) -> Scene:
        items = list(self.items)
        items[self.active] = replace(self.current, **values)
        return replace(self, items=tuple(items))


@dataclass(frozen=True)
class History:
    """Scenes before and after the present one."""

    present: Scene = field(default_factory=Scene)
    past: tuple[Scene, ...] = ()
    future: tuple[Scene, ...] = ()

    def then(self, scene: Scene) -> History:
        """`scene` is the present, and what was undone is gone."""
        return self if scene == self.present else History(scene, (*self.past[-99:], self.present))

    def undo(self) -> History:
        """One step back, if there is one."""
        return History(self.past[-1], self.past[:-1], (self.present, *self.future)) if self.past else self

    def redo(self) -> History:
        """One step forward again, if there is one."""
        return History(self.future[0], (*self.past, self.present), self.future[1:]) if self.future else self


def act(history: History, action: dict[str, Any], size: tuple[int, int]) -> History:
    """What the page asks for, which may be anything: its messages can be forged.

    Args:
        action: "kind" and what belongs to it; coordinates in pixels of the photograph.
        size: (H, W) of the photograph, to which coordinates are clamped.

    Raises:
        InputError: no such action, or one that cannot be done.
    """
    scene, kind = history.present, action.get("kind")
    if kind == "undo":
        return history.undo()
    if kind == "redo":
        return history.redo()
    if kind == "point":
        label = _integer(action, "label", 2)
        return history.then(scene.with_point(*_place(action, "x", "y", size), label))
    if kind == "box":
        return history.then(scene.with_box(*_place(action, "x0", "y0", size), *_place(action, "x1", "y1", size)))
    if kind == "choose":
        return history.then(scene.with_choice(_integer(action, "index", 3)))
    if kind == "new":
        return history.then(scene.with_item())
    if kind == "clear":
        return history.then(Scene())
    if kind == "remove":
        return history.then(scene.without(_integer(action, "index", len(scene.items))))
    if kind == "rename":
        return history.then(scene.renamed(_integer(action, "index", len(scene.items)), str(action.get("name", ""))))
    if kind == "select":  # a matter of view, not of the scene: nothing to undo
        return replace(history, present=scene.selected(_integer(action, "index", len(scene.items))))
    raise InputError("the page asked for something unknown: reload it")


def _integer(action: dict[str, Any], key: str, below: int) -> int:
    value = action.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise InputError(f"the page sent a wrong {key}: reload it")
    return value


def _place(action: dict[str, Any], x: str, y: str, size: tuple[int, int]) -> tuple[float, float]:
    place = []
    for key, most in ((x, size[1]), (y, size[0])):
        value = action.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"the page sent a wrong {key}: reload it")
        place.append(round(min(max(float(value), 0.0), float(most)), 2))
    return place[0], place[1]
