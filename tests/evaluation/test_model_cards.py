"""Model cards: what they say of trainings and of updates."""

from __future__ import annotations

import json
from pathlib import Path

from dekag.evaluation.reports.model_cards import KINDS, card, write_cards
from dekag.generation.loading import folder_hash

LADDER = [
    {"form": "metaword alone", "bytes": 1500, "gain": 0.1, "chosen": False},
    {"form": "rank 1, 2 bits", "bytes": 17000, "gain": 0.4, "chosen": True},
]


def test_a_card_of_updates_says_what_each_form_costs_and_gives(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "knowledge"
    made = {
        "scores": {"clip_before": 0.5, "clip_after": 0.9, "dino_before": 0.2, "dino_after": 0.7},
        "config": {"images": 96, "steps": 300},
        "steps": 420,
    }
    for topic, more in {"neon": {"ladder": LADDER}, "unscored": {}}.items():
        (folder / topic).mkdir(parents=True)
        (folder / topic / "history.json").write_text(json.dumps({**made, **more}))
        (folder / topic / "update.safetensors").write_bytes(bytes(16_900))
    text = card(folder)
    assert "| neon | 96 | 300 | rank 1, 2 bits | 16,900 | 0.5 → 0.9 | 0.2 → 0.7 |" in text
    assert "| neon | 1,500 (+0.100) | 17,000 (+0.400) |" in text
    assert "unscored" not in text, "nothing is known of it"


def test_a_card_follows_every_training_and_none_is_written_without_one(tmp_path: Path) -> None:
    edge = tmp_path / "own" / "edge"
    edge.mkdir(parents=True)
    assert card(edge) == ""
    assert write_cards(tmp_path) == []
    first = {
        "command": "dekag train edge",
        "seed": 1,
        "steps": 5,
        "seconds": 2.5,
        "quality": {"subject": 0.9},
    }
    second = {**first, "command": "dekag train edge --start it", "continues": first}
    (edge / "training.json").write_text(json.dumps(second))
    (edge / "unet").mkdir()
    (edge / "unet" / "model.safetensors").write_bytes(bytes(1_234_567))
    assert write_cards(tmp_path) == [edge / "README.md"]
    text = (edge / "README.md").read_text()
    assert (
        text.index("dekag train edge --start it")
        < text.index("It continues:")
        < text.index("`dekag train edge`")
    )
    assert "subject, on held-out images: 0.9" in text
    assert "\nWeights: 1.2 MB.\n" in text
    assert f"# {KINDS['edge'][0]} of the profile own" in text


def test_a_card_says_which_numbers_are_of_held_out_images(tmp_path: Path) -> None:
    vae = tmp_path / "own" / "vae"
    vae.mkdir(parents=True)
    quality = {"pictures": 200, "psnr_db": 33.8, "held_out_latent_snr_db": 16, "share": 0.05, "encode_ms": 50}
    (vae / "training.json").write_text(json.dumps({"command": "dekag train vae", "quality": quality}))
    said = [line for line in card(vae).splitlines() if line.startswith("- ")]
    assert said == [
        "- command: `dekag train vae`",
        "- held-out images: 200",
        "- psnr db, on held-out images: 33.8",
        "- latent snr db, on held-out images: 16",
        "- trained parameters, of the codec's: 0.05",
        "- time to encode an image, ms: 50",
    ]


def test_a_card_says_what_is_not_there_any_more(tmp_path: Path) -> None:
    vae = tmp_path / "own" / "vae"
    vae.mkdir(parents=True)
    of_today = {"command": "dekag train vae --start mine", "quality": {"styles": {"comic": {}}}}
    (vae / "training.json").write_text(json.dumps(of_today))
    assert "- note: " not in card(vae)
    start = "dekag train vae --start models/embedded/vae"
    crops = {"command": start, "continues": {"command": "dekag train vae"}}
    whole = {"command": start, "quality": {"styles": {"noir": {}}}, "continues": crops}
    (vae / "training.json").write_text(json.dumps(whole))
    notes = [line for line in card(vae).splitlines() if line.startswith("- note: ")]
    assert len(notes) == 2
    assert "the world no longer has noir" in notes[0]
    assert "models/embedded/vae is not in the repository any more" in notes[1]


def test_a_card_shows_the_quality_that_was_measured_of_this_very_model(tmp_path: Path) -> None:
    vae, results = tmp_path / "own" / "vae", tmp_path / "results"
    vae.mkdir(parents=True)
    (vae / "model.safetensors").write_bytes(b"weights")
    of_draft = {"psnr_db": 30.0, "styles": {"noir": {}}}
    start = {"command": "dekag train vae", "quality": {"psnr_db": 27.0}}
    record = {"command": "dekag train vae --start it", "quality": of_draft, "continues": start}
    (vae / "training.json").write_text(json.dumps(record))
    made = {"command": "dekag train vae-quality", "commit": "abc", "date": "2026-01-01"}
    made |= {"quality": {"pictures": 200, "psnr_db": 33.8}}
    (results / "training").mkdir(parents=True)
    for measured, of_this in ((folder_hash(vae), True), ("0" * 64, False)):
        text = json.dumps({**made, "model_hash": measured})
        (results / "training" / "vae-own.json").write_text(text)
        shown = card(vae, results)
        assert ("psnr db, on held-out images: 33.8" in shown) == of_this
        assert ("psnr db, on held-out images: 30.0" in shown) != of_this
        assert "psnr db, on held-out images: 27.0" in shown, "of an earlier run"
        assert ("- note: trained on the first draft" in shown) == of_this
    assert "vae-quality" not in card(vae, tmp_path / "none")


def test_every_model_that_ships_has_its_card() -> None:
    for folder in Path("models").glob("*/*"):
        if folder.name in KINDS:
            assert (folder / "README.md").read_text() == card(folder), f"{folder}: run `dekag results book`"
