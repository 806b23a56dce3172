"""Draw a small data set to try Fiducial with.

``classify``: circuit boards; ``segment``: aerial scenes; ``mal``: shapes with boxes; ``mlrecog``: handwritten
digits. The same arguments give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from demo_data import boards, digits, scenes, shapes


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    shows_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)

    classify = tasks.add_parser(
        "classify", help="pairs of circuit board tiles, good or defect", formatter_class=shows_defaults
    )
    classify.add_argument("--boards", type=int, default=40, help="boards, each in one split only")
    classify.add_argument("--parts", type=int, default=18, help="components on a board: one row each")
    classify.add_argument(
        "--designs", type=int, default=2, help="board designs, each with one golden picture per component"
    )
    classify.add_argument("--size", type=int, default=64, help="side of a tile, pixels")
    classify.add_argument(
        "--lights",
        type=lights,
        default="SolderLight,WhiteLight",
        metavar="LIGHT[,LIGHT…]",
        help=", ".join(boards.LIGHTS),
    )
    classify.add_argument("--defects", type=float, default=0.17, help="share of defect components, 0..1")

    segment = tasks.add_parser("segment", help="aerial scenes, before and after", formatter_class=shows_defaults)
    segment.add_argument("--scenes", type=int, default=160, help="pairs of pictures, each in one split only")
    segment.add_argument("--size", type=int, default=128, help="side of a picture, pixels")

    mal = tasks.add_parser("mal", help="leaves, stars, brackets and moons, with boxes", formatter_class=shows_defaults)
    mal.add_argument("--pictures", type=int, default=120, help="pictures, each in one split only")
    mal.add_argument("--shapes", type=int, default=6, help="shapes on a picture, where there is room")
    mal.add_argument("--size", type=int, default=192, help="side of a picture, pixels")

    mlrecog = tasks.add_parser("mlrecog", help="handwritten digits in class folders", formatter_class=shows_defaults)
    mlrecog.add_argument("--size", type=int, default=32, help="side of a picture, pixels")

    for task in (classify, segment, mal, mlrecog):
        task.add_argument("out", type=Path, help="folder to write; it may exist")
        task.add_argument("--seed", type=int, default=0)
    return parser.parse_args(with_joined_lights(sys.argv[1:] if argv is None else argv))


def with_joined_lights(argv: Sequence[str]) -> list[str]:
    """``--lights A B out`` as ``--lights=A,B out``: an option of several words would take the folder for one."""
    words: list[str] = []
    for word in argv:
        if word in boards.LIGHTS and words and words[-1].split("=")[0] == "--lights":
            words[-1] += ("," if "=" in words[-1] else "=") + word
        else:
            words.append(word)
    return words


def lights(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in boards.LIGHTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no light: choose from {', '.join(boards.LIGHTS)}")
    return names


def make_classify(args: argparse.Namespace) -> str:
    rows = boards.make_boards(
        args.out,
        num_boards=args.boards,
        num_parts=args.parts,
        num_designs=args.designs,
        size=args.size,
        lights=args.lights,
        defect_share=args.defects,
        seed=args.seed,
    )
    return "\n".join(
        f"{split}.csv: {len(split_rows)} rows of {len({row['board'] for row in split_rows})} boards; "
        f"{counts(row['label'] for row in split_rows)}; {counts(row['defect'] for row in split_rows)}"
        for split, split_rows in rows.items()
    )


def make_segment(args: argparse.Namespace) -> str:
    shares = scenes.make_scenes(args.out, num_scenes=args.scenes, size=args.size, seed=args.seed)
    return "\n".join(
        f"list/{split}.txt: {len(of_split)} scenes, {sum(share > 0 for share in of_split)} with a change; "
        f"{100 * sum(of_split) / len(of_split):.1f} % of the pixels changed"
        for split, of_split in shares.items()
    )


def make_mal(args: argparse.Namespace) -> str:
    numbers = shapes.make_shapes(args.out, pictures=args.pictures, shapes=args.shapes, size=args.size, seed=args.seed)
    return "\n".join(
        f"{split}.json: {number} boxes{'' if split == 'train' else ' with masks'}" for split, number in numbers.items()
    )


def make_mlrecog(args: argparse.Namespace) -> str:
    numbers = digits.make_digits(args.out, size=args.size, seed=args.seed)
    return "\n".join(f"{part}: {number} pictures" for part, number in sorted(numbers.items()))


MAKERS = {"classify": make_classify, "segment": make_segment, "mal": make_mal, "mlrecog": make_mlrecog}


def counts(values: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(values).items()))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        made = MAKERS[args.task](args)
    except ValueError as error:
        raise SystemExit(f"make_demo_data.py: {error}") from None
    print(made)
    print(f"{args.out / 'README.txt'} describes the set")


if __name__ == "__main__":
    main()
