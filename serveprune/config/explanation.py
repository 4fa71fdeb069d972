"""Pydantic's findings in the words of someone who writes the file, not of someone who wrote the models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from serveprune.config.model import SOURCE_KINDS
from serveprune.config.names import NAME_PATTERN
from serveprune.config.problem import KeyPath, Problem, description, suggestion


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the document an error is, and what the models have there."""

    path: KeyPath
    parent: type[BaseModel] | None
    annotation: Any
    field: FieldInfo | None


def explain(error: ErrorDetails, *, root: type[BaseModel]) -> Problem | None:
    """Translate one error of validating a document against ``root``.

    ``None`` means it only repeats others: pydantic counts the entries that are right, so a list whose entries are
    all wrong is also reported as too short; and a default that follows from other keys fails with them.
    """
    kind = error["type"]
    place = _locate(_without_key_mark(error), root=root)
    if kind == "extra_forbidden":
        return Problem(place.path, _unknown_key(place))
    if kind == "missing":
        return Problem(place.path, f"expected this key, got none{_purpose(place)}")
    if kind == "no_source":
        return Problem((*place.path[:-1], "source"), error["msg"])
    if kind == "value_error":
        return Problem(place.path, str(error.get("ctx", {})["error"]))
    if kind == "default_factory_not_called":
        return None
    if kind == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]:
        return None
    if kind == "union_tag_invalid":
        return _unknown_tag(error, place)
    expected = _expected(error, place)
    return Problem(place.path, f"expected {expected}, got {description(error['input'])}{_hint(error, place)}")


def _unknown_key(place: _Place) -> str:
    known = list(place.parent.model_fields) if place.parent is not None else []
    return f"unknown key{suggestion(place.path[-1], known) or ';'} known keys: {', '.join(known)}"


def _unknown_tag(error: ErrorDetails, place: _Place) -> Problem:
    key, known = (error["ctx"][part].replace("'", "") for part in ("discriminator", "expected_tags"))
    tag = error["input"][key]
    hint = suggestion(tag, known.split(", "))
    return Problem((*place.path, key), f"expected one of {known}, got {description(tag)}{hint}")


def _purpose(place: _Place) -> str:
    choices = _choices(place.annotation)
    if choices:
        return f" (one of {', '.join(map(str, choices))})"
    return f" ({place.field.description})" if place.field is not None and place.field.description else ""


def _expected(error: ErrorDetails, place: _Place) -> str:
    words = _EXPECTED.get(error["type"])
    if words is None:
        return f"another value ({error['msg']})"
    return words(error.get("ctx", {}), place) if callable(words) else words


def _hint(error: ErrorDetails, place: _Place) -> str:
    value = error["input"]
    if error["type"] == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    if error["type"] == "literal_error":
        return suggestion(value, [choice for choice in _choices(place.annotation) if isinstance(choice, str)])
    if error["type"] == "unknown_source" and isinstance(value, Mapping):
        return next(filter(None, (suggestion(key, SOURCE_KINDS) for key in value if key not in SOURCE_KINDS)), "")
    return ""


def _mapping_words(_context: Mapping[str, Any], place: _Place) -> str:
    model = _model_type(place.annotation)
    return f"a mapping with keys of {', '.join(model.model_fields)}" if model is not None else "a mapping"


def _choice_words(_context: Mapping[str, Any], place: _Place) -> str:
    return f"one of {', '.join(map(str, _choices(place.annotation)))}"


def _pattern_words(context: Mapping[str, Any], place: _Place) -> str:
    if context["pattern"] == NAME_PATTERN:
        return "a name of at most 128 letters, digits, `.`, `_` and `-` that begins with a letter, a digit or `_`"
    purpose = place.field.description if place.field is not None else None
    return (purpose or f"text like {context['pattern']}").rstrip(".")


def _entries_words(context: Mapping[str, Any], _place: _Place) -> str:
    return f"at least {context['min_length']} {'entry' if context['min_length'] == 1 else 'entries'}"


def _tag_words(context: Mapping[str, Any], place: _Place) -> str:
    known = ", ".join(_tagged_members(_without_wrapping(place.annotation)))
    return f"a mapping with the key {context['discriminator'].strip(chr(39))}, which is one of {known}"


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


_EXPECTED: Mapping[str, str | Callable[[Mapping[str, Any], _Place], str]] = {
    "model_type": _mapping_words,
    "model_attributes_type": _mapping_words,
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_type": "text",
    "string_unicode": "text of valid characters",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of sensible size",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "literal_error": _choice_words,
    "string_pattern_mismatch": _pattern_words,
    "string_too_short": "text that is not empty",
    "too_short": _entries_words,
    "greater_than": lambda context, _: f"a number above {_plain(context['gt'])}",
    "greater_than_equal": lambda context, _: f"a number of at least {_plain(context['ge'])}",
    "less_than": lambda context, _: f"a number below {_plain(context['lt'])}",
    "less_than_equal": lambda context, _: f"a number of at most {_plain(context['le'])}",
    "union_tag_not_found": _tag_words,
    "unknown_source": f"a mapping with exactly one of the keys {', '.join(SOURCE_KINDS)}",
}


def _without_key_mark(error: ErrorDetails) -> tuple[int | str, ...]:
    """Drop the ``[key]`` by which pydantic says that it means a mapping's key, not its value."""
    location = error["loc"]
    # An unknown key of that very name is no mark, and neither is an entry: the input is then its value.
    is_mark = (
        error["type"] != "extra_forbidden" and location[-1:] == ("[key]",) and location[-2:-1] == (error["input"],)
    )
    return location[:-1] if is_mark else location


def _locate(location: tuple[int | str, ...], *, root: type[BaseModel]) -> _Place:
    """Walk the models along pydantic's location, leaving out the tags of a union's chosen members."""
    place = _Place((), None, root, None)
    for part in location:
        annotation = _without_wrapping(place.annotation)
        members = _tagged_members(annotation)
        if members:
            place = _Place(place.path, None, members.get(str(part)), place.field)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            place = _Place((*place.path, part), annotation, field.annotation if field else None, field)
        else:
            arguments = get_args(annotation)
            element = arguments[1] if get_origin(annotation) is dict else arguments[0] if arguments else None
            place = _Place((*place.path, part), None, element, None)
    return place


def _without_wrapping(annotation: Any) -> Any:
    """Strip ``Annotated`` and the ``None`` of an optional."""
    while True:
        arguments = [argument for argument in get_args(annotation) if argument is not NoneType]
        if get_origin(annotation) is Annotated or (len(arguments) == 1 and NoneType in get_args(annotation)):
            annotation = arguments[0]
        else:
            return annotation


def _tagged_members(annotation: Any) -> dict[str, Any]:
    """Return tag -> model of a tagged union; empty for any other annotation."""
    if get_origin(annotation) in (None, dict, tuple, Literal):
        return {}
    return {tag: _without_wrapping(member) for member in get_args(annotation) if (tag := _tag(member)) is not None}


def _tag(member: Any) -> str | None:
    for note in getattr(member, "__metadata__", ()):
        if isinstance(note, Tag):
            return note.tag
    model = _model_type(member)
    kind = model.model_fields.get("kind") if model is not None else None
    return str(kind.default) if kind is not None else None


def _model_type(annotation: Any) -> type[BaseModel] | None:
    bare = _without_wrapping(annotation)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def _choices(annotation: Any) -> tuple[Any, ...]:
    bare = _without_wrapping(annotation)
    return get_args(bare) if get_origin(bare) is Literal else ()
