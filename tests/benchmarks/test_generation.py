"""Maps of what language models write, on models whose answers are known by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import Attribution
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput
from typer.testing import CliRunner

from captum_transformer_lrp.benchmarks import BenchmarkError, Prompt, generation
from captum_transformer_lrp.benchmarks.generation import Generation
from captum_transformer_lrp.benchmarks.methods import Method
from captum_transformer_lrp.benchmarks.removal import STEPS
from captum_transformer_lrp.cli import app
from captum_transformer_lrp.examples import letter_chain
from captum_transformer_lrp.models import LanguageModel
from tests.letters import chain, data
from tests.letters.prompts import copied


class Counts(nn.Module):
    """The logit of the next token is how often it was read, times its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.eye(21))
        self.weight = nn.Parameter(torch.arange(21.0) / 10)

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table(input_ids).cumsum(1) * self.weight)


class Known(Attribution):
    """A map that is highest at one place, and falls from there to both sides."""

    place = 2

    def __init__(self, model: Any) -> None:
        self.forward_func = model

    def attribute(self, inputs: Tensor, target: Any = None, **_: Any) -> Tensor:
        away = (torch.arange(inputs.shape[1]) - self.place).abs()
        return (3.0 - away).expand(len(inputs), -1).unsqueeze(-1)


@pytest.fixture(scope="module")
def letters() -> LanguageModel:
    return LanguageModel("letters", *letter_chain())


@pytest.fixture(scope="module")
def counts(letters: LanguageModel) -> LanguageModel:
    return LanguageModel("counts", Counts(), letters.tokenizer)


def measured(model: LanguageModel, prompt: Prompt, **options: Any) -> dict[str, Any]:
    """What is noted of the map that is known."""
    benchmark = Generation(model, [prompt], ["random"], **options)
    benchmark.by_label["random"] = Method("known", Known)
    return benchmark.evaluate(benchmark.load(0), "random")


def test_the_place_and_the_share_there_by_hand(counts: LanguageModel) -> None:
    """The map of five letters is 1, 2, 3, 2, 1."""
    text = "a H b c d"
    found = measured(counts, Prompt(text, "H", ((4, 5),)))
    assert (found["found"], found["mass"]) == (1, pytest.approx(3 / 9))
    found = measured(counts, Prompt(text, "H", ((2, 3),)))
    assert (found["found"], found["mass"]) == (0, pytest.approx(2 / 9))
    found = measured(counts, Prompt(text, "H", ((2, 5), (8, 9))))
    assert (found["found"], found["mass"]) == (1, pytest.approx(6 / 9))
    assert set(measured(counts, Prompt(text, "H"))) == {"MoRF", "LeRF"}


def test_only_the_context_is_looked_at(counts: LanguageModel) -> None:
    """Of the map 1, 2, 3, 2, 1 the last three letters: only these go, and all of them may."""
    found = measured(counts, Prompt("a H b c d", "H", ((6, 7),), ((4, 9),)))
    assert (found["found"], found["mass"]) == (0, pytest.approx(2 / 6))
    left = [measured(counts, Prompt(f"a H{rest}", "H")) for rest in (" b c d", " c d", " d", "")]
    expected = [one["MoRF"]["0 %"] for one in left]
    gone = [math.ceil(step * 3 / 100) for step in (0, *STEPS)]
    assert list(found["MoRF"].values()) == pytest.approx([expected[one] for one in gone])


def test_log_probabilities_as_tokens_go_by_hand(counts: LanguageModel) -> None:
    """The order is b, H, c, a, d.  Of a letter that is no longer read the logit is 0."""
    weight = (torch.arange(21.0) / 10).tolist()
    number = {name: place for place, name in enumerate(chain.NAMES)}

    def expected(left: str) -> float:
        logits = [weight[one] * (chain.NAMES[one] in left) for one in range(21)]
        return logits[number["H"]] - math.log(sum(map(math.exp, logits)))

    found = measured(counts, Prompt("a H b c d", "H"))
    gone = [math.ceil(step * 5 / 100) for step in (0, *STEPS)]
    assert gone == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    most = ["aHbcd", "aHcd", "acd", "ad", "d", "d"]  # the last letter always stays
    assert list(found["MoRF"].values()) == pytest.approx([expected(most[one]) for one in gone])
    least = ["aHbcd", "aHbc", "Hbc", "Hb", "b", "b"]
    assert list(found["LeRF"].values()) == pytest.approx([expected(least[one]) for one in gone])


def test_the_area_between_is_that_of_the_curves(counts: LanguageModel, tmp_path: Path) -> None:
    prompts = [Prompt("a H b c d", "H"), Prompt("a H b c d e H", "H")]
    result = generation(counts, prompts, ["input_x_gradient", "random"], output=tmp_path)
    for method in ("input_x_gradient", "random"):
        areas = {}
        for curve, test in zip(
            [one for one in result.summary.curves if one.method == method],
            ("MoRF", "LeRF"),
            strict=True,
        ):
            assert curve.x == (0, *STEPS)
            areas[test] = 0.1 * (sum(curve.y) - (curve.y[0] + curve.y[-1]) / 2)
            assert result.figure(method, test).value == pytest.approx(areas[test])
        between = result.figure(method, "LeRF − MoRF")
        assert between.value == pytest.approx(areas["LeRF"] - areas["MoRF"])
    assert between.difference is not None


def test_several_written_tokens_are_one_answer(letters: LanguageModel) -> None:
    """Their maps are summed up, and so are their log-probabilities."""
    text = "f H g I b e g b ?"
    benchmark = Generation(letters, [Prompt(text, "H I", ((2, 3), (6, 7)))], ["attnlrp"])
    example = benchmark.load(0)
    found = benchmark.evaluate(example, "attnlrp")
    assert found["found"] == 1
    with torch.no_grad():
        logits = letters.model(example.encoded.input_ids).logits[0, 8:-1].double()
    of_both = logits.log_softmax(-1).gather(1, example.written[:, None]).sum()
    assert found["MoRF"]["0 %"] == pytest.approx(float(of_both))
    assert benchmark.describe(example)["right"]


def test_without_what_was_written_the_model_writes(letters: LanguageModel) -> None:
    benchmark = Generation(letters, [Prompt("f H g I b e g b ?")], ["random"])
    example = benchmark.load(0)
    assert letters.tokenizer.decode(example.written) == "H"
    assert benchmark.describe(example) == {"tokens": 9, "written": [9], "right": True}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_copying_models_are_explained_by_the_letter_that_they_copy(
    name: str, tmp_path: Path
) -> None:
    model = LanguageModel(name, data.trained(name), data.tokenizer())
    prompts = copied(10)[::2]
    result = generation(model, prompts, ["attnlrp", "random"], output=tmp_path)
    found, mass, between = (
        result.figure("attnlrp", metric) for metric in ("found", "mass", "LeRF − MoRF")
    )
    assert found.value == 1
    assert mass.value > 0.3 > result.figure("random", "mass").value
    assert between.value > result.figure("random", "LeRF − MoRF").value
    assert found.count == 10
    assert 0 <= mass.standard_error < 0.1


def test_rollout_depends_on_the_place_that_it_explains(letters: LanguageModel) -> None:
    """Of a class-agnostic method the map of each written token is that of its own place."""
    shares = []
    for written in ("H", "H I"):
        prompt = Prompt("f H g I b e g b ?", written, ((2, 3),))
        benchmark = Generation(letters, [prompt], ["raw_attention"])
        assert benchmark.by_label["raw_attention"].class_agnostic
        shares.append(benchmark.evaluate(benchmark.load(0), "raw_attention")["mass"])
    assert shares[1] < 0.9 * shares[0]  # the second letter is read elsewhere


def lines(prompts: list[Prompt]) -> str:
    return "".join(json.dumps(vars(one)) + "\n" for one in prompts)


def test_the_command_reads_a_file_goes_on_and_names_damaged_lines(
    letters: LanguageModel, tmp_path: Path
) -> None:
    folder, file, output = tmp_path / "model", tmp_path / "prompts.jsonl", tmp_path / "out"
    letters.model.save_pretrained(folder)
    letters.tokenizer.save_pretrained(folder)
    damaged = ['{"written": "H"}\n', "no JSON\n", '{"prompt": "a b", "evidence": [[0, 9]]}\n']
    damaged += ['{"prompt": ""}\n', '{"prompt": "a b", "written": ""}\n', "[]\n", " \n"]
    damaged.append('{"prompt": "a b", "evidence": [[0, 1]], "context": [[2, 3]]}\n')
    file.write_text(lines(copied(2)) + "".join(damaged))
    command = ["benchmark", "generation", "--model", str(folder), "--data", str(file)]
    command += ["--methods", "attnlrp,random", "--output", str(output)]
    found = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    assert "4 examples (7 skipped)" in found.output
    for number in range(5, 12):
        assert f"skipped prompt {number}: " in found.stderr
    whole = (output / "results.json").read_bytes()
    (records,) = output.glob("records-*.jsonl")
    half = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(half[:3]) + half[3][:20])
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "line 4: the line is not finished: run again" in " ".join(again.stderr.split())
    assert (output / "results.json").read_bytes() == whole
    for missing in (tmp_path / "missing", folder):
        result = CliRunner().invoke(app, [*command[:5], str(missing), *command[6:]])
        assert (result.exit_code, "found no file" in result.output) == (2, True)


def test_tokens_can_be_masked_only_where_there_is_a_mask(letters: LanguageModel) -> None:
    with pytest.raises(BenchmarkError, match="has no mask token: use removal 'delete'"):
        Generation(letters, copied(1), ["random"], removal="mask")


def test_parts_that_the_prompt_does_not_have_are_refused() -> None:
    for span in ((0, 9), (-1, 2), (2, 2)):
        with pytest.raises(ValueError, match="is no part of a prompt of 5 letters"):
            Prompt("a b c", None, (span,))
        with pytest.raises(ValueError, match="is no part of a prompt of 5 letters"):
            Prompt("a b c", None, (), (span,))
