"""The axes and points that ``--over`` describes."""

import math

import pytest

from lit_modules.studies.sweep.grid import Axis, grid, read_axis, short_names, write_value
from lit_modules.utils.errors import UsageError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("--a = 1 , 2 ", (1, 2)),
        ("a=1,inf,-inf,1e-3", (1, math.inf, -math.inf, 0.001)),
        ("a=null,true,abc", (None, True, "abc")),
        ("a=[1,2],[3,4],[]", ([1, 2], [3, 4], [])),
        ("a={class_path: b.C, init_args: {d: [1, 2]}},E", ({"class_path": "b.C", "init_args": {"d": [1, 2]}}, "E")),
        ("a='x,y',\"z,\"", ("x,y", "z,")),
        ("a=b=c,d", ("b=c", "d")),
        ("a=2020-01-01", ("2020-01-01",)),
    ],
)
def test_values_are_yaml(text: str, values: tuple[object, ...]) -> None:
    axis = read_axis(text)
    assert axis.key == "a"
    assert axis.values == values
    assert list(map(type, axis.values)) == list(map(type, values))


@pytest.mark.parametrize("text", ["a=", "a=1,,2", "a=(1]", "a=1,*x", "a=1]"])
def test_values_that_are_no_list_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--over a must have values with commas between, as in a YAML list, got"):
        read_axis(text)


def test_nested_numbers_are_written_as_the_parser_reads_them() -> None:
    assert write_value([1, math.inf, None]) == "[1, .inf, null]"
    assert write_value({"p": math.inf, "a": "1"}) == "{p: .inf, a: '1'}"


def test_points_are_the_product_in_order() -> None:
    axes = [Axis("data.variant.size", (1, math.inf)), Axis("model.name", ("a/b", None))]
    names = [point.name for point in grid(axes)]
    assert names[1] == "size=1,name=null"
    assert names[0].startswith("size=1,name=a_b-")
    assert [point.values for point in grid(axes)] == [(1, "a/b"), (1, None), (math.inf, "a/b"), (math.inf, None)]


def test_names_of_folders_are_distinct_and_short() -> None:
    values = (1, None, True, "a b", "a/b", "a_b", "..", "x" * 300, "x" * 301, 1e-17, 0.1 + 0.2, 0.3, "C", [1], "1_")
    values += ({"class_path": "a.C"}, {"class_path": "b.C"})  # type: ignore[assignment]
    names = [point.name for point in grid([Axis("a.b", values)])]
    assert len({name.lower() for name in names}) == len(values)
    assert not any(set(name) & set('/\\ :*?"<>|') for name in names)
    many = [Axis(f"group.name_of_an_axis_{number}", ("y" * 40, "z")) for number in range(6)]
    long = [point.name for point in grid(many)]
    assert max(map(len, long)) <= 200
    assert len(set(long)) == 64


def test_axes_that_end_alike_keep_their_names() -> None:
    axes = [Axis("model.size", (1,)), Axis("data.size", (1,)), Axis("model.rate", (1,))]
    assert short_names(axes) == ["model.size", "data.size", "rate"]
