"""The catalogue: every code is there and says something a person can use; a wrong code is answered with the closest."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

import pytest

from lightning_stall import catalogue
from lightning_stall.catalogue import CATALOGUE, Entry, check_codes, explain, table
from lightning_stall.catalogue.entry import paragraphs
from lightning_stall.catalogue.reference import PAGES, pages
from lightning_stall.errors import MisconfigurationException

# The promise to users, in order: a code is never renamed and never changes its kind.
CODES = {
    "exploding-gradients": "symptom",
    "vanishing-gradients": "cause",
    "nonfinite-loss": "symptom",
    "nonfinite-gradients": "symptom",
    "unstable-operation": "cause",
    "nonfinite-inputs": "cause",
    "unscaled-inputs": "cause",
    "disparate-feature-scales": "cause",
    "categorical-as-numeric": "cause",
    "constant-inputs": "cause",
    "unscaled-targets": "cause",
    "corrupt-samples": "cause",
    "class-imbalance": "cause",
    "unshuffled-data": "cause",
    "train-val-leakage": "cause",
    "too-little-data": "cause",
    "duplicate-randomness": "cause",
    "uninformative-targets": "cause",
    "probabilities-as-logits": "cause",
    "loss-shape-mismatch": "cause",
    "wrong-loss-for-task": "cause",
    "output-range-mismatch": "cause",
    "insufficient-capacity": "cause",
    "missing-nonlinearity": "cause",
    "overfitting": "cause",
    "dead-activations": "cause",
    "saturated-activations": "cause",
    "batch-mixing": "cause",
    "mode-mismatch": "cause",
    "bad-initialization": "cause",
    "excess-regularization": "cause",
    "training-too-short": "symptom",
    "loss-plateau": "symptom",
    "never-learned": "symptom",
    "loss-diverging": "symptom",
    "loss-oscillating": "symptom",
    "learning-rate-too-high": "cause",
    "learning-rate-too-low": "cause",
    "learning-rate-decayed-early": "cause",
    "parameters-not-optimized": "cause",
    "gradients-not-cleared": "cause",
    "clipping-too-tight": "cause",
    "replicas-diverged": "cause",
    "batchnorm-small-batch": "cause",
    "batchnorm-stale-statistics": "cause",
    "data-starvation": "cause",
    "too-many-workers": "cause",
    "dataloader-hang": "cause",
    "training-hang": "cause",
}
CALLBACKS = {
    "GradientHealth",
    "AutoClip",
    "PlateauWatch",
    "OptimizerHealth",
    "BatchNormBatchSizeGuard",
    "DataStarvationMonitor",
    "InputHealth",
    "LossCheck",
    "ActivationHealth",
    "StallReport",
}
# Only a person can mend these, so auto_remedy must not promise anything.
ADVICE_ONLY = {
    "vanishing-gradients",
    "categorical-as-numeric",
    "constant-inputs",
    "unscaled-targets",
    "class-imbalance",
    "unshuffled-data",
    "train-val-leakage",
    "too-little-data",
    "duplicate-randomness",
    "uninformative-targets",
    "probabilities-as-logits",
    "loss-shape-mismatch",
    "wrong-loss-for-task",
    "output-range-mismatch",
    "insufficient-capacity",
    "missing-nonlinearity",
    "saturated-activations",
    "batch-mixing",
    "mode-mismatch",
    "excess-regularization",
    "training-too-short",
    "learning-rate-decayed-early",
    "parameters-not-optimized",
    "gradients-not-cleared",
}
each_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))


def snippets(entry: Entry) -> list[str]:
    return [textwrap.dedent(block) for block in paragraphs(entry.advice) if block.startswith("    ")]


def test_every_code_with_its_kind_in_order():
    assert [(code, entry.kind) for code, entry in CATALOGUE.items()] == list(CODES.items())


def test_no_code_stands_twice_in_the_families():
    families = (
        catalogue.NUMERICS,
        catalogue.DATA,
        catalogue.LOSS,
        catalogue.OPTIMISATION,
        catalogue.BATCHNORM,
        catalogue.PIPELINE,
    )
    assert sum(len(family) for family in families) == len(CATALOGUE)


@each_entry
def test_an_entry_is_whole(entry: Entry):
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", entry.code)
    assert entry.title
    assert not entry.title.endswith(".")
    assert entry.callbacks
    assert set(entry.callbacks) <= CALLBACKS
    assert entry.means.endswith(".")
    assert "\n" not in entry.means
    assert 1 <= len(re.findall(r"[.!?](?=\s|$)", entry.why)) <= 4
    assert len(re.sub(r"\s+", " ", entry.advice)) > 150
    assert all(text == text.strip() for text in (entry.title, entry.means, entry.why, entry.advice))


@each_entry
def test_code_to_paste_is_python(entry: Entry):
    inline = re.findall(r"`[^`]+`", entry.advice)
    assert snippets(entry) or inline, "advice without anything to paste"
    for snippet in snippets(entry):
        ast.parse(snippet)


def test_a_remedy_is_promised_only_where_there_is_one():
    assert {code for code, entry in CATALOGUE.items() if entry.remedy is None} == ADVICE_ONLY
    for entry in CATALOGUE.values():
        named = set(re.findall(r"`(\w+)\(", entry.remedy or "")) & CALLBACKS
        assert named or entry.remedy is None, f"{entry.code}: the remedy must say which callback applies it"


def test_codes_named_in_a_text_exist():
    # words with a hyphen that look like a code but are none must be looked at, and listed here
    english = {"micro-batch"}
    endings = "|".join(sorted({code.split("-")[-1] for code in CODES}))
    for entry in CATALOGUE.values():
        named = set(re.findall(rf"\b[a-z]+(?:-[a-z]+)*-(?:{endings})\b", f"{entry.why} {entry.advice} {entry.remedy}"))
        assert named <= set(CODES) | english, entry.code


@each_entry
def test_explain_says_all_and_how_to_mute(entry: Entry):
    page = explain(entry.code)
    words = " ".join(page.split())
    assert page.startswith(f"{entry.code}: {entry.title}\nkind: {entry.kind}")
    for text in (entry.means, entry.why, entry.advice, entry.remedy or "only a person can mend this"):
        assert " ".join(text.split()) in words
    assert all(f'{callback}(mute=("{entry.code}",))' in page for callback in entry.callbacks)
    assert all(code in page for code in re.findall(r"`[^`]+`", entry.advice)), "code must not be broken over lines"
    assert f'stall_callbacks(mute=("{entry.code}",))' in page
    prose = [line for line in page.splitlines() if not line.startswith("      ")]
    assert max(map(len, prose)) <= 96
    assert all(line == line.rstrip() for line in page.splitlines())


def test_explain_whole_page():
    assert explain("missing-nonlinearity") == textwrap.dedent(
        """\
        missing-nonlinearity: Linear layers with nothing between them
        kind: cause (why training stalls)
        said by: LossCheck

        What it means
          Linear layers are stacked with no activation between them.

        Seen when
          the graph of the loss has linear layers one after the other, with nothing between them that
          bends.

        Not seen
          Low-rank factors, projections around attention.

        Why it stalls training
          A linear map of a linear map is again one linear map, so the stack can represent no more than
          a single layer, however deep it is. The loss stops at what a linear model can reach.

        An example
              nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 4))

        The same, mended
              nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))

        What to do
          Put an activation after each layer but the last:

              self.net = nn.Sequential(nn.Linear(n_in, 64), nn.ReLU(), nn.Linear(64, n_out))

          In a `forward` of your own: `x = F.relu(self.first(x))`. BatchNorm, LayerNorm and dropout are
          no substitute. A narrow first layer that is meant (a low-rank factor) is fine: mute this code.

        What auto_remedy=True may do
          Nothing: only a person can mend this. Follow the advice above.

        How to mute it
              LossCheck(mute=("missing-nonlinearity",))
              stall_callbacks(mute=("missing-nonlinearity",))
        """
    )


def test_an_unknown_code_is_answered_with_the_closest():
    with pytest.raises(MisconfigurationException) as caught:
        explain("class-imbalanced")
    assert str(caught.value) == (
        "explain got 'class-imbalanced', which is none of the 49 codes. The closest: 'class-imbalance'."
        " List them all with `print(lightning_stall.catalogue.table())`."
    )


@pytest.mark.parametrize(
    ("wrong", "closest"),
    [
        ("vanishing_gradients", "'vanishing-gradients'"),
        ("Loss Plateau", "'loss-plateau'"),
        ("batchnorm", "'batchnorm-small-batch'"),
        ("dataloader-hangs", "'dataloader-hang'"),
    ],
)
def test_the_closest_code_comes_first(wrong: str, closest: str):
    for ask in (explain, lambda code: check_codes((code,))):
        with pytest.raises(MisconfigurationException, match=f"The closest: {closest}"):
            ask(wrong)


@pytest.mark.parametrize("wrong", ["", "zzzzzz", None, 3, ("overfitting",), ["overfitting"]])
def test_what_is_no_code_is_refused(wrong: object):
    with pytest.raises(MisconfigurationException, match="none of the 49 codes"):
        explain(wrong)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="mute got"):
        check_codes([wrong])  # type: ignore[list-item]


def test_check_codes_keeps_order_and_takes_any_collection():
    assert check_codes(()) == ()
    assert check_codes(["overfitting", "class-imbalance"]) == ("overfitting", "class-imbalance")
    assert check_codes(code for code in CODES) == tuple(CODES)


@pytest.mark.parametrize("wrong", ["overfitting", "no-such-code", None, 3])
def test_mute_wants_a_tuple(wrong: object):
    with pytest.raises(MisconfigurationException, match="mute takes a tuple of codes") as caught:
        check_codes(wrong)  # type: ignore[arg-type]
    assert repr(wrong) in str(caught.value)


def test_the_table_has_a_row_for_each_code():
    head, rule, *rows = table().splitlines()
    assert head == "| code | kind | means | remedy |"
    assert rule == "| --- | --- | --- | --- |"
    assert [row.split(" | ")[:2] for row in rows] == [[f"| `{code}`", kind] for code, kind in CODES.items()]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_texts_may_be_written_over_several_lines():
    text = """
        First line,
        second line:
            code(
                1)
        After it.

        A paragraph.
    """
    entry = Entry("a-b", "T", "cause", ("StallReport",), "Means.", "Why.", text)
    assert entry.advice == "First line, second line:\n\n    code(\n        1)\n\nAfter it.\n\nA paragraph."


def test_the_catalogue_needs_the_standard_library_only():
    for path in Path(catalogue.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:  # module level: what an import runs
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.startswith("lightning_stall.catalogue") or name.split(".")[0] in sys.stdlib_module_names


def test_every_code_has_a_page_whose_snippets_are_python():
    assert set(PAGES) == set(CODES)
    for page in PAGES.values():
        assert page.sick != page.mended
        for snippet in (page.sick, page.mended):
            ast.parse(snippet)
        assert page.seen.endswith(".")
        assert page.usually.endswith(".")
        assert page.not_seen.endswith(".")


def test_the_reference_pages_are_up_to_date():
    folder = Path(__file__).parent.parent / "docs" / "codes"
    assert {p.name: p.read_text() for p in folder.glob("*.md")} == pages(), "run `make docs`"
