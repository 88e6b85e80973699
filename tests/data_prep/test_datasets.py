"""The two registers of datasets: what can be prepared can be rendered, and a recipe's name leads back to its dataset."""

import importlib

import pytest

from data_prep import demo, prepare
from data_prep.plan import code_version
from jobs.configs import load_named, prepare_command


def test_every_dataset_has_a_demo_corpus_for_one_of_its_recipes():
    corpora = {name: importlib.import_module(module) for name, module in demo.DATASETS.items()}
    datasets = {name: getattr(corpus, "DATASET", name) for name, corpus in corpora.items()}
    assert set(datasets.values()) == prepare.DATASETS.keys()
    for name, corpus in corpora.items():
        assert corpus.RECIPE in importlib.import_module(prepare.DATASETS[datasets[name]]).RECIPES
        assert corpus.DEFAULT_TRACKS > 0
        assert len(code_version(corpus.CODE)) == 16


@pytest.mark.parametrize("dataset", prepare.DATASETS)
def test_a_recipe_names_its_dataset_and_its_code(dataset):
    for name, stage in importlib.import_module(prepare.DATASETS[dataset]).RECIPES.items():
        assert (stage.recipe, stage.dataset) == (name, dataset)
        assert len(code_version(stage.code)) == 16, "every piece of code that it names exists"
        config = load_named("dismix_demo", [f"data.recipe={name}"])
        assert prepare_command(config) == f"python data_prep/prepare.py {dataset} --source FOLDER --recipe {name}"
