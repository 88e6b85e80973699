"""CocoChorales' recipes, by name: DisMix's simple case and its LDM case, each at the paper's size and for two CPU cores."""

from __future__ import annotations

from data_prep.cocochorales_clips import ChoraleStage
from data_prep.cocochorales_ldm import LdmCase
from data_prep.cocochorales_reader import INSTRUMENTS
from data_prep.cocochorales_simple import SimpleCase

DEMO_INSTRUMENTS = ("violin", "flute", "clarinet", "trumpet")  # clearly different timbres

RECIPES: dict[str, ChoraleStage] = {
    recipe.recipe: recipe
    for recipe in (
        # The paper's simple case on CocoChorales; 52 pitches that cover the four voices
        SimpleCase("cocochorales_simple", 256, 4, 4, INSTRUMENTS, 33, 84, mixtures_per_track=4),
        SimpleCase("cocochorales_simple_demo", 12, 2, 2, DEMO_INSTRUMENTS, 48, 72, None),  # two octaves
        # The paper's LDM case: random ensembles, in which an instrument says nothing about the voice it plays
        LdmCase("cocochorales_ldm", 64, 4, 1, INSTRUMENTS, ensembles=("random",), windows_per_track=4),
        LdmCase("cocochorales_ldm_demo", 12, 2, 1, DEMO_INSTRUMENTS, ("random",), 4, choices_per_window=3),
    )
}
