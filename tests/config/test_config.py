"""A job file and flags in, a checked job or one clear line out."""

import re
from pathlib import Path

import pytest
import yaml

from paliscribe import config
from paliscribe.errors import UsageError

GOOD = {"manifest": "photos/", "tasks": ["caption en"], "output": "out"}


def test_defaults_are_filled_and_shorthands_accepted() -> None:
    job = config.parse(GOOD | {"tasks": "ocr", "model": "google/paligemma-3b-mix-224", "partition_by": "kind"})
    assert job.tasks == ("ocr",)
    assert job.model.id == "google/paligemma-3b-mix-224"
    assert job.partition_by == ("kind",)
    assert config.parse(GOOD).model.id == "demo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "demo"}, "unknown key 'modle' (did you mean 'model'?)"),
        ({"pool": {"replica": 2}}, "unknown key 'pool.replica' (did you mean 'replicas'?)"),
        ({"model": {"id": "demo", "precison": "float32"}}, "did you mean 'precision'?"),
        ({"shard_rows": "many"}, "'shard_rows': input should be a valid integer"),
        ({"shard_rows": 0}, "'shard_rows': input should be greater than or equal to 1"),
        ({"tasks": []}, "'tasks'"),
        ({"max_error_rate": 1.5}, "'max_error_rate'"),
        ({"partition_by": ["task", "task"]}, "duplicate column"),
        ({"partition_by": [""]}, "'partition_by': a column without a name"),
        ({"partition_by": [f"c{n}" for n in range(17)]}, "'partition_by': tuple should have at most 16 items"),
        ({"model": {"precision": "float8"}}, "'model.precision'"),
    ],
)
def test_what_is_wrong_is_named_on_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.parse(GOOD | change, source="job.yaml")
    text = str(caught.value)
    assert message in text
    assert text.startswith("job.yaml: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"models": [{"nmae": "x"}]}, "unknown key 'models.0.nmae' (did you mean 'name'?)"),
        ({"models": [{"model": {"idd": "x"}}]}, "unknown key 'models.0.model.idd' (did you mean 'id'?)"),
        (
            {"models": [{"model": "a"}, {"pool": {"slot": 1}}]},
            "unknown key 'models.1.pool.slot' (did you mean 'slots'?)",
        ),
        ({"models": []}, "'models': tuple should have at least 1 item after validation, not 0"),
        ({"rate": float("inf")}, "'rate': input should be a finite number"),
        ({"timeout": float("inf")}, "'timeout': input should be a finite number"),
    ],
)
def test_what_is_wrong_in_an_endpoint_is_said_once(change: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.parse_serve(change, source="serve.yaml")
    assert str(caught.value) == f"serve.yaml: {line}"
    with pytest.raises(UsageError, match=r"^settings: 'tasks\.0': [^;]*$"):
        config.parse(GOOD | {"tasks": [{}]})


def test_missing_settings_are_all_named() -> None:
    with pytest.raises(UsageError, match="'manifest' is missing; 'tasks' is missing; 'output' is missing"):
        config.parse({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "job file, which is a mapping"),
        ("manifest: [unclosed\n", "not valid YAML at line"),
        ("", "job file, which is a mapping"),
    ],
)
def test_bad_job_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        config.load(file)


def test_a_limit_that_leaves_no_room_for_a_prompt() -> None:
    job = {"manifest": "m", "tasks": ["ocr"], "output": "o"}
    with pytest.raises(UsageError, match=r"^settings: max_tokens 600 leaves no room.* pool.text_tokens to 664 or more"):
        config.parse(job | {"max_tokens": 600})
    for fits in ({"max_tokens": 600, "pool": {"text_tokens": 664}}, {"max_tokens": 600, "pool": {"name": "large"}}):
        assert config.parse(job | fits).max_tokens == 600


def test_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such job file"):
        config.load(tmp_path / "nothing.yaml")


def test_precision_follows_the_hardware() -> None:
    spec = config.ModelSpec()
    assert spec.resolved(gpu=False).precision == "float32"
    assert spec.resolved(gpu=True).precision == "bfloat16"
    assert config.ModelSpec(precision="float16").resolved(gpu=False).precision == "float16"


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"name": "big#1"}, "'pool.name': string should match pattern"),
        ({"name": "x" * 41}, "'pool.name': string should have at most 40 characters"),
        ({"gpus_per_replica": 1.5}, "'pool.gpus_per_replica': must be 0, a whole number, or a fraction"),
        ({"gpus_per_replica": 0.00001}, "'pool.gpus_per_replica': must be 0, a whole number, or a fraction"),
        ({"gpus_per_replica": float("nan")}, "'pool.gpus_per_replica': input should be"),
        ({"accelerator_type": "NVIDIA L4"}, "'pool.accelerator_type': string should match pattern"),
        ({"accelerator_type": "L4", "gpus_per_replica": 0}, "'pool': accelerator_type needs a GPU"),
        ({"resources": {"GPU": 1}}, "'pool.resources': 'GPU' is not a custom resource; use cpus_per_replica"),
        ({"resources": {"accelerator_type:L4": 1}}, "'pool.resources': 'accelerator_type:L4' is not a custom resource"),
        ({"resources": {"disk": 0}}, "'pool.resources': 'disk' is 0, below"),
        ({"resources": {"disk": -1}}, "'pool.resources': 'disk' is -1, below"),
        ({"resources": {"disk": float("inf")}}, "'pool.resources.disk': input should be a finite number"),
        ({"resources": {"disk": "much"}}, "'pool.resources.disk': input should be a valid number"),
        (
            {"name": "big", "replicas": 2, "slots": 8},
            "with `name` nothing else can be set, since that pool exists already; remove replicas, slots",
        ),
    ],
)
def test_what_a_pool_cannot_be(pool: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.parse(GOOD | {"pool": pool})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_pools_of_gpus() -> None:
    for pool, there, gpus, share in [
        ({}, False, 0, 1),
        ({}, True, 1, 1),
        ({"gpus_per_replica": 0}, True, 0, 1),
        ({"gpus_per_replica": 1}, False, 1, 1),  # the nodes may come
        ({"accelerator_type": "L4"}, False, 1, 1),
        ({"accelerator_type": "L4", "gpus_per_replica": 0.25}, False, 0.25, 0.25),
        ({"gpus_per_replica": 2}, True, 2, 1),
    ]:
        parsed = config.parse(GOOD | {"pool": pool}).pool
        assert (parsed.gpus(available=there), parsed.device_share) == (gpus, share)
    named = config.parse(GOOD | {"pool": {"name": "big"}})
    assert config.JobConfig.model_validate(named.model_dump(mode="json")) == named, "a run file is read again"


@pytest.mark.parametrize(
    ("entries", "called"),
    [
        ([{"pool": {"name": "small"}}, {"pool": {"name": "big"}}], ["demo:small", "demo:big"]),
        ([{}, {"name": "other", "pool": {"name": "x"}}], ["demo", "other"]),
        ([{"name": "a", "pool": {"name": "x"}}, {"pool": {"name": "y"}}], ["a", "demo:y"]),
        ([{"model": "a", "pool": {"name": "x"}}, {"model": "b", "pool": {"name": "x"}}], ["a:x", "b:x"]),
    ],
)
def test_one_model_in_several_pools(entries: list[dict[str, object]], called: list[str]) -> None:
    models = config.parse_serve({"models": entries}).models
    assert [served.called for served in models] == called


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{}, {}], "'models': two models have the same name"),
        ([{"name": "a", "pool": {"name": "x"}}, {"pool": {"name": "x"}}], "two pools of demo have the same name"),
        ([{"name": "x"}, {"name": "y"}], "two pools of demo have the same name, or none"),
    ],
)
def test_pools_that_collide(entries: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.parse_serve({"models": entries})


def test_the_example_is_a_job() -> None:
    example = Path(__file__).parents[2] / "examples" / "job.yaml"
    job = config.parse(config.load(example), source=str(example))
    assert job.partition_by == ("task", "split")


def test_the_guides_settings_are_settings() -> None:
    pages = (Path(__file__).parents[2] / "docs" / "guide").glob("*.md")
    text = "".join(page.read_text() for page in pages)
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) >= 3
    for block in blocks:
        if "models" in block:
            config.parse_serve(block, source="guide")
        else:
            config.parse(GOOD | block, source="guide")


def test_double_quantization_is_of_4_bits() -> None:
    with pytest.raises(UsageError, match=r"'model': double_quantization needs `quantization"):
        config.parse(GOOD | {"model": {"double_quantization": True}})
    both = {"quantization": "nf4", "double_quantization": True}
    assert config.parse(GOOD | {"model": both}).model.double_quantization


def test_columns_are_renamed_by_pairs_or_a_mapping() -> None:
    names = ("Text=words", "a=b=c")
    for given in (list(names), {"Text": "words", "a=b": "c"}):
        assert config.parse(GOOD | {"rename_columns": given}).rename_columns == names
    assert config.parse(GOOD | {"drop_columns": "Text"}).drop_columns == ("Text",)
    for wrong in ("Text", "Text=", "Text= "):
        with pytest.raises(UsageError, match=r"'rename_columns': '.*' is not of the form OLD=NEW"):
            config.parse(GOOD | {"rename_columns": [wrong]})
    with pytest.raises(UsageError, match="'rename_columns': duplicate column"):
        config.parse(GOOD | {"rename_columns": ["a=b", "a=c"]})


@pytest.mark.parametrize(
    "body", [b"1" + b":1" * 100_000, b"[" * 200_000, b"- " * 100_000, b"a: &x [1]\nb: *x\n", b"a: 1\n---\nb: 2\n"]
)
def test_untrusted_yaml_that_costs_much_is_rejected(body: bytes) -> None:
    with pytest.raises(ValueError):
        config.plain_yaml(body)


def test_untrusted_yaml_is_read_as_other_yaml() -> None:
    body = b"a: [1, two, ~, true, 2.5]\nb: {c: 1:20}\n"
    assert config.plain_yaml(body) == yaml.safe_load(body)
