"""Products that training never saw, of a drawn shop: recall at 1 of a trained embedding, an untrained one, and pixels.

``python scripts/bench/mlrecog_packs.py [--seed 0] [--folder demo]`` draws 60 packs of 15 brands, trains
``configs/mlrecog/packs.yaml`` on 40 of them, and looks up the other 20, which are whole brands, in a gallery of four
pictures each.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(2, str(Path(__file__).resolve().parent))

from demo_data.packs import make_packs

from fiducial import cli


def recall_at_1(recognizer, folder: Path) -> float:  # type: ignore[no-untyped-def]
    """Of the unseen products, by a recognizer or an untrained network in one."""
    import torch

    from mlrecog.folders import read_class_folders
    from mlrecog.metrics import retrieval

    gallery = read_class_folders(str(folder / "unseen" / "reference"), key="reference")
    queries = read_class_folders(str(folder / "unseen" / "query"), key="query", classes=gallery.classes)
    sides = [
        (recognizer.embed([s.path for s in part.samples]), torch.tensor([s.label for s in part.samples]))
        for part in (queries, gallery)
    ]
    return retrieval(*sides[0], *sides[1]).mean("recall_at_1", by_class=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the packs and of the training")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes")
    args = parser.parse_args()
    start = time.monotonic()
    data = args.folder / "data-packs"
    make_packs(data, seed=args.seed)
    settings = ["--config", "mlrecog/packs", "--map-path", f"demo={args.folder}", f"train.seed={args.seed}"]
    from mlrecog.task import ML_RECOG

    if code := cli.main((ML_RECOG,), ["train", *settings], prog="mlrecog"):
        raise SystemExit(code)
    import torch
    from demo_mlrecog_baseline import baselines

    import mlrecog

    recognizer = mlrecog.load(args.folder / "results-packs")
    trained = recall_at_1(recognizer, data)
    torch.manual_seed(args.seed)
    fresh = mlrecog.build_recognizer("fan_tiny", feat_dim=128, image_size=(64, 64)).eval()
    recognizer.network.load_state_dict(fresh.state_dict())
    print(f"\nDone in {time.monotonic() - start:.0f} s. Recall at 1 of 20 products that training never saw")
    print(f"  {trained:.3f}  trained on 40 others")
    print(f"  {recall_at_1(recognizer, data):.3f}  untrained")
    for name, value in baselines(data / "unseen" / "reference", data / "unseen" / "query", side=64).items():
        print(f"  {value:.3f}  {name}")


if __name__ == "__main__":
    main()
