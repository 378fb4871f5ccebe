"""A few steps of the digit reader's training, and the pictures that it draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from captum_transformer_lrp.examples.training import digit_reader
from captum_transformer_lrp.examples.training.digit_reader import (
    HELD_OUT,
    SIDE,
    digits,
    draw,
    load,
    new_model,
    save,
    train,
    varied,
)


def trained(folder: Path, steps: int = 2, *, vary: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = train(new_model(), steps=steps, batch_size=4, learning_rate=1e-3, seed=0, vary=vary)
    save(model, folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("vary", [False, True])
def test_the_same_seed_gives_the_same_weights_and_each_step_others(
    tmp_path: Path, vary: bool
) -> None:
    first, same = (trained(tmp_path / name, vary=vary) for name in ("first", "same"))
    longer = trained(tmp_path / "longer", steps=3, vary=vary)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], longer[name]) for name in first)
    assert {value.dtype for value in first.values()} == {torch.float16}
    assert not load(tmp_path / "first").training


def test_no_held_out_digit_is_in_a_training_picture() -> None:
    shown, kept = digits(False)[0], digits(True)[0]
    assert len(kept) == HELD_OUT
    assert len(shown) + len(kept) == 1797
    assert not (kept[:, None] == shown[None]).flatten(2).all(2).any()


@pytest.mark.parametrize("held_out", [False, True])
def test_a_digit_lies_in_its_box_and_its_half(held_out: bool) -> None:
    questions = draw(50, torch.Generator().manual_seed(0), held_out=held_out)
    middle = SIDE // 2
    for which, half in enumerate((slice(None, middle), slice(middle, None))):
        box = questions.box(which)
        assert (box.flatten(1).sum(1) == 64).all()
        assert (box[:, :, half].flatten(1).sum(1) == 64).all()
        outside = ~(questions.box(0) | questions.box(1))
        # Noise is below a tenth.
        assert (questions.images * outside).max() < 0.1
        assert ((questions.images * box).flatten(1).amax(1) > 0.5).all()


def test_a_picture_may_show_the_digit_alone_that_is_asked_for() -> None:
    questions = draw(50, torch.Generator().manual_seed(0), held_out=True, alone=1.0)
    for which in range(2):
        shown = (questions.images * questions.box(which)).flatten(1).amax(1) > 0.5
        assert torch.equal(shown, questions.sides == which)


@pytest.mark.slow
def test_the_command_writes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--output", str(tmp_path), "--steps", "1", "--batch-size", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(digit_reader.torch, "set_num_threads", lambda count: None)
    digit_reader.main()
    monkeypatch.setattr("sys.argv", [*arguments, "--start", str(tmp_path)])
    digit_reader.main()
    assert capsys.readouterr().out.count("held-out digits:") == 2
    assert (tmp_path / "tokenizer.json").exists()


def test_a_varied_digit_stays_near_itself() -> None:
    shapes, _ = digits(False)
    found = varied(shapes, torch.Generator().manual_seed(0))
    assert found.shape == shapes.shape
    assert found.min() >= 0
    assert found.max() <= 1
    near = (found - shapes).square().sum((1, 2))
    far = (found - shapes.roll(1, 0)).square().sum((1, 2))
    # Others of the same class are near, too: a tenth of all, and not by chance more.
    assert (near < far).double().mean() > 0.9
