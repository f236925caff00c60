import copy
import json
from pathlib import Path
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
import pytest
import yaml

from lit_modules.synthia import Concept, Ontology
from lit_modules.utils.ontology import find_problems
from lit_modules.utils.ontology_files import convert_three_maps


@pytest.fixture
def mini(repository: Path) -> Ontology:
    return Ontology.from_file(repository / "tests" / "data" / "synthia" / "mini.yaml")


def one(concept: Any, **other: Any) -> dict[str, Any]:
    return {"schema_version": 1, "name": "one", "superordinates": {"tool": {"saw": concept}}, **other}


def whole(main: Any) -> dict[str, Any]:
    return one({"affordances": {"main": main}})


CUT = {"affordances": {"main": ["cut"]}}


def test_the_household_has_the_counts_it_promises() -> None:
    household = Ontology.from_file("household")
    assert household.stats() == {
        "superordinates": 6,
        "concepts": 36,
        "parts": 98,
        "part_names": 56,
        "affordances": 68,
        "concept_affordances": 54,
        "part_affordances": 31,
    }
    assert household.validate() == []
    refrigerator = household.concept("appliance/refrigerator")
    assert (refrigerator.main, refrigerator.sub) == (("cool", "store"), ("preserve",))
    assert household.parts_of("refrigerator") == {"shelf": ("hold",), "door": ("open", "close"), "handle": ("grip",)}


def test_queries(mini: Ontology) -> None:
    assert mini.affordances_of("Furniture/Cabinet") == {"store", "organize"}
    assert mini.affordances_of("cabinet", "part") == {"support", "open", "close"}
    assert mini.affordances_of("cabinet", "all") == {"store", "organize", "support", "open", "close"}
    assert mini.concepts_with("sit") == ("furniture/sofa", "vehicle/wheelchair")
    assert mini.concepts_with("sit", "all") == ("furniture/sofa", "vehicle/bus", "vehicle/wheelchair")
    assert mini.concepts_with("grip") == ()
    assert mini.affordances("concept") == ("boil", "drive", "escort", "organize", "pour", "rest", "sit", "store")


def test_the_graph_keeps_paths_and_shares_affordances(mini: Ontology) -> None:
    graph = mini.graph
    assert nx.is_directed_acyclic_graph(graph)
    assert graph.nodes["furniture/sofa/leg"] == {"kind": "part", "name": "leg"}
    assert graph.edges["furniture", "furniture/sofa"]["kind"] == "has_concept"
    assert graph.edges["furniture/sofa", "furniture/sofa/leg"]["kind"] == "has_part"
    assert set(graph.predecessors("/support")) == {"furniture/sofa/leg", "furniture/cabinet/leg"}
    assert {kind for *_, kind in graph.in_edges("/rest", data="kind")} == {"affords"}
    kinds = [kind for _, kind in graph.nodes(data="kind")]
    assert [kinds.count(kind) for kind in ("superordinate", "concept", "part", "affordance")] == [3, 6, 13, 13]
    with pytest.raises(nx.NetworkXError, match="Frozen"):
        graph.add_node("x")


def test_a_concept_may_stand_under_two_superordinates() -> None:
    own = Concept("tool", "fan", ("cool",), (), {}), Concept("people", "fan", ("cheer",), (), {})
    ontology = Ontology(own, "fans")
    assert ontology.affordances_of("people/fan") == {"cheer"}
    named = one(CUT, superordinates={"Kitchen  Ware": {" Coffee_Maker": {"affordances": {"main": ["Cut ", "cut"]}}}})
    (maker,) = Ontology.from_dict(named).concepts  # names are normalised
    assert (maker.path, maker.main) == ("kitchen ware/coffee_maker", ("cut",))
    with pytest.raises(ValueError, match=r"'fan' is one of tool/fan, people/fan; give the path\."):
        ontology.concept("fan")
    with pytest.raises(ValueError, match="'tool/fan' occurs twice"):
        Ontology((own[0], own[0]), "fans")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_written_and_read_again(mini: Ontology, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"again.{suffix}"
    data = mini.to_json() if suffix == "json" else yaml.safe_dump(mini.to_dict(), sort_keys=False)
    path.write_text(data, encoding="utf-8")
    again = Ontology.from_file(path)
    assert (again.concepts, again.name) == (mini.concepts, "mini")
    merged = "{saw: &saw {affordances: {main: [cut]}}, axe: {<<: *saw, affordances: {main: [split]}}}"
    path.write_text(f"schema_version: 1\nname: merged\nsuperordinates:\n  tool: {merged}\n", encoding="utf-8")
    if suffix == "yaml":  # a merge key is no repetition
        assert Ontology.from_file(path).affordances_of("axe") == {"split"}


def tools(**concepts: Any) -> dict[str, Any]:
    return one(CUT, superordinates={"tool": concepts})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "must be a mapping with schema_version, name and superordinates, got nothing."),
        (one(CUT, schema_version=True), "schema_version: must be 1, got True."),
        (one(CUT, name=" "), "name: must be a text that is not empty, got ' '."),
        (one(CUT, superordinate={}), "unknown key 'superordinate'; did you mean 'superordinates'?"),
        (tools(**{"saw": CUT, " SAW": CUT}), "tool/saw: this concept occurs twice in its super"),
        (tools(**{"a/b": CUT}), "tool: a concept must not contain a slash, got 'a/b'"),
        (one(CUT, superordinates={"tool": {3: CUT}}), "tool: a concept must be a text, got 3; put it in quotes."),
        (one({"parts": {"blade": []}}), "tool/saw: has no affordance; a concept needs at least one."),
        (one({"affordances": {"mian": ["cut"]}}), "tool/saw/affordances: unknown key 'mian'; did you mean 'main'?"),
        (whole([True]), "tool/saw/affordances/main: an affordance must be a text, got True: YAML reads on, off, yes"),
        (whole(["cut", " "]), "tool/saw/affordances/main: an affordance has an empty name."),
        (one({**CUT, "parts": {"blade": "cut"}}), "tool/saw/blade: must be a list of affordances, got 'cut'."),
        (
            one({"affordances": {"main": [""]}, "parts": {"": []}}, name=""),
            "name: must be a text that is not empty, got",
        ),
    ],
)
def test_a_broken_schema_is_named_with_its_path(data: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        Ontology.from_dict(data, "objects.yaml")
    assert str(raised.value).startswith("objects.yaml: ")
    assert message in str(raised.value)
    count = len(find_problems(data))
    assert count == 1 or str(raised.value).endswith(f" There are {count - 1} further problems.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"name": 1, "name": 1}', "the key 'name' occurs twice"),
        ("a.yaml", b"name: x\nname: y\n", "line 2: the key 'name' occurs twice in one mapping"),
        ("a.yaml", b"name: [x\n", "line 2 is not YAML"),
        ("a.json", b"{\n]", "line 2 is not JSON"),
        ("a.yml", b"name: \xff", "byte 6 is not UTF-8"),
        ("a.yaml", b"name: \x00", "special characters are not allowed"),
        ("a.txt", b"", r"must end in \.yaml, \.yml or \.json"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        Ontology.from_file(path)
    assert str(path) in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"bundled one \(household\); 'hosehold' does not exist"):
        Ontology.from_file("hosehold")


def test_unknown_names_are_answered_with_the_nearest(mini: Ontology) -> None:
    with pytest.raises(ValueError, match=r"no affordance 'stor' in mini; did you mean 'store'\?"):
        mini.concepts_with("stor")
    with pytest.raises(ValueError, match=r"no concept 'soffa' in mini; did you mean 'sofa'\?"):
        mini.parts_of("soffa")
    with pytest.raises(ValueError, match="level must be 'concept', 'part' or 'all', got 'whole'"):
        mini.affordances("whole")  # type: ignore[arg-type]


def test_remarks_on_what_is_legal() -> None:
    tools = {
        "saw": CUT,
        "axe": CUT,
        "jig": {"parts": {"arm": ["hold on"], "base": []}},
        "vice": {"affordances": {"main": ["hold_on"]}},
    }
    assert Ontology.from_dict(one(CUT, superordinates={"tool": tools})).validate() == [
        "tool/axe: has the affordances of tool/saw, at a distance of 0.",
        "tool/jig: only its parts have affordances, so it forms no pair.",
        "tool/jig/base: has no affordance.",
        "The affordances 'hold on' and 'hold_on' differ in punctuation alone.",
    ]


def three_maps(ontology: Ontology) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for concept in ontology.concepts:
        maps = data.setdefault(
            concept.superordinate, {"coarse_parts": {}, "coarse_affordance": {}, "coarse_parts_affordance": {}}
        )
        maps["coarse_parts"][concept.name] = list(concept.parts)
        maps["coarse_affordance"][concept.name] = {"main": list(concept.main), "sub": list(concept.sub)}
        maps["coarse_parts_affordance"][concept.name] = {
            part: {"main": list(names[:1]), "sub": list(names[1:])} for part, names in concept.parts.items()
        }
    return data


def test_three_maps_are_converted_and_meet_by_normalised_names(mini: Ontology, tmp_path: Path) -> None:
    path = tmp_path / "mini.json"
    path.write_text(json.dumps(three_maps(mini)), encoding="utf-8")
    converted = Ontology.from_file(path)
    assert (converted.name, converted.concepts) == ("mini", mini.concepts)
    maps: dict[str, Any] = {
        "coarse_parts": {"Desk  Lamp": ["Bulb", "foot"]},
        "coarse_affordance": {"desk lamp": {"main": ["Shine"]}},
        "coarse_parts_affordance": {"desk lamp ": {"bulb": {"main": ["glow"]}, "FOOT": {"main": [], "sub": ["stand"]}}},
    }
    lamp = Concept("light", "desk lamp", ("shine",), (), {"bulb": ("glow",), "foot": ("stand",)})
    assert Ontology.from_dict({"light": maps}).concepts == (lamp,)
    maps["coarse_affordance"]["Desk Lamp"] = {"main": ["warm"]}
    maps["coarse_parts_affordance"]["desk lamp "]["Bulb"] = {"main": ["heat"]}
    maps["coarse_parts"][3] = []
    assert find_problems({"light": maps}) == [
        "light/coarse_parts: a concept must be a text, got 3; put it in quotes.",
        "light/coarse_affordance/desk lamp: occurs twice; names differ by more than case and spaces.",
        "light/coarse_parts_affordance/desk lamp/bulb: occurs twice; names differ by more than case and spaces.",
    ]


def test_what_is_wrong_in_three_maps_is_named(mini: Ontology) -> None:
    good = three_maps(mini)["furniture"]
    by_part = "coarse_parts_affordance"
    cases: list[tuple[str, Any, str]] = [
        (by_part, {"sofa": {"arm": {"main": ["rest"]}}}, f"{by_part}/sofa/arm: unknown part"),
        (by_part, {"soffa": {}}, f"{by_part}/soffa: unknown concept; did you mean 'sofa'?"),
        (by_part, {"sofa": {"leg": {"main": "x"}}}, "furniture/sofa/leg: must be a list of affordances"),
        ("coarse_parts", {"sofa": "leg"}, "furniture/coarse_parts/sofa: must be a list of part names, got 'leg'."),
        ("coarse_affordances", {}, "furniture: unknown key 'coarse_affordances'; did you mean 'coarse_affordance'?"),
    ]
    for key, value, message in cases:
        problems = find_problems({"furniture": {**copy.deepcopy(good), key: value}})
        assert any(problem.startswith("furniture") and message in problem for problem in problems)
    problems = convert_three_maps({"furniture": good, "tool": 3})[1]
    assert problems == ["tool: must be a mapping of coarse_parts, coarse_affordance, coarse_parts_affordance, got 3."]
