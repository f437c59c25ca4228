"""What a model's hashes are of."""

from __future__ import annotations

import json

import pytest

from captum_attnflow.runs.folder import model_hashes


@pytest.mark.parametrize("name", ["vocab.txt", "bpe.codes", "vocab.bpe", "source.spm"])
def test_files_of_slow_tokenizers_are_hashed(tmp_path, name):
    (tmp_path / name).write_text("one")
    before = model_hashes(str(tmp_path))
    (tmp_path / name).write_text("two")
    assert model_hashes(str(tmp_path)) != before


def test_weights_are_hashed_wherever_their_list_says_they_are(tmp_path):
    index = {"weight_map": {"a": "shards/1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "shards").mkdir()
    (tmp_path / "checkpoint-5").mkdir()
    for file in ("shards/1.safetensors", "2.safetensors", "checkpoint-5/config.json"):
        (tmp_path / file).write_text(file)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    names = {"shards/1.safetensors", "2.safetensors", path.name}
    assert model_hashes(str(tmp_path)).keys() == names
    for content in ("[", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}'):
        path.write_text(content)
        assert model_hashes(str(tmp_path)).keys() == {"2.safetensors", path.name}


def test_the_model_that_an_adapter_belongs_to_is_hashed(tmp_path):
    adapter, base = tmp_path / "adapter", tmp_path / "model"
    adapter.mkdir()
    base.mkdir()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_text("one")
    before = model_hashes(str(adapter))
    assert before.keys() == {config.name, "base/config.json", "base/model.safetensors"}
    (base / "model.safetensors").write_text("two")
    after = model_hashes(str(adapter))
    assert [name for name in before if before[name] != after[name]] == [
        "base/model.safetensors"
    ]
    # A whole model beside it is what is read.
    (adapter / "config.json").write_text("{}")
    assert model_hashes(str(adapter)).keys() == {config.name, "config.json"}
