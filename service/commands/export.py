"""`python -m service export`: writes a model as a folder or as ONNX, or uploads it to a hub.

stdout is one JSON document; what a person reads goes to stderr.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.spec import parse_spec
from service.commands.models import locate_shipped
from service.errors import SettingError
from service.host import service_command

TARGETS = ("folder", "onnx", "hub", "modelscope")
EXAMPLES = """examples:
  export runs/reviews-lora --to folder --output runs/reviews-merged
  export runs/reviews --to onnx --output runs/reviews-onnx
  export runs/reviews --to hub --repo ORG/NAME --dry-run
"""


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service export",
        description="Write a model as a folder (an adapter merged into its base) or as ONNX, or upload its folder.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="SOURCE", help="a directory or a hub id, as for --model of serve")
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--output", type=Path, metavar="DIR", help="of folder and onnx")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument(
        "--precision", choices=("float16", "float32"), help="of the weights in folder (default: float16); onnx: float32"
    )
    parser.add_argument("--repo", metavar="ORG/NAME", help="of hub and modelscope; created where there is none")
    parser.add_argument("--revision", metavar="NAME", help="the branch (default: main; of modelscope: master)")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files that would be uploaded; needs no network and no token"
    )
    parser.add_argument(
        "--token-to-mirror",
        action="store_true",
        help="upload also where HF_ENDPOINT or MODELSCOPE_ENDPOINT is not the hub's own address, which gets your token",
    )
    args = parser.parse_args(argv)
    _check_flags(args)
    checkpoint = resolve(locate_shipped(parse_spec(args.model)))
    result = _write(args, checkpoint) if args.to in ("folder", "onnx") else _upload(args, checkpoint)
    print(json.dumps(result, ensure_ascii=False, indent=2))
    return 0


def _check_flags(args: Namespace) -> None:
    is_upload = args.to in ("hub", "modelscope")
    if is_upload and args.repo is None:
        raise SettingError(f"--to {args.to}: needs --repo ORG/NAME")
    if not is_upload and args.output is None:
        raise SettingError(f"--to {args.to}: needs --output DIR")
    unused = ("output", "precision") if is_upload else ("repo", "revision", "token_to_mirror")
    if found := [f"--{name.replace('_', '-')}" for name in unused if getattr(args, name)]:
        raise SettingError(f"{found[0]}: not with --to {args.to}")
    if args.dry_run and not is_upload:
        raise SettingError(f"--dry-run: not with --to {args.to}; it lists an upload")
    if args.to == "onnx" and args.precision:
        raise SettingError("--precision: not with --to onnx, whose numbers are float32")


def _write(args: Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    result: dict[str, Any] = {"to": args.to, "output": str(args.output)}
    if args.to == "onnx":
        from service.tools.export.onnx_file import export_onnx

        difference = export_onnx(checkpoint, args.output, overwrite=args.overwrite)
        print(f"largest difference from the engine: {difference:.1e}", file=sys.stderr)
        result["difference"] = difference
    else:
        from service.tools.export.folder import export_folder

        export_folder(checkpoint, args.output, precision=args.precision or "float16", overwrite=args.overwrite)
        print(f"to serve it: {service_command(f'serve --model {args.output}')}", file=sys.stderr)
    files = sorted(path for path in args.output.rglob("*") if path.is_file())
    result["files"] = [{"path": str(file.relative_to(args.output)), "bytes": file.stat().st_size} for file in files]
    return result


def _upload(args: Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    from service.tools.export.publish import plan_upload, upload

    plan = plan_upload(checkpoint, args.to, args.repo, args.revision, is_private=args.private)
    for file in plan.files:
        made = "  (made here)" if file.source is None else ""
        print(f"{file.num_bytes:>14,}  {file.path}{made}", file=sys.stderr)
    print(f"{plan.num_bytes:>14,}  to {plan.repository}@{plan.revision} ({plan.target})", file=sys.stderr)
    result: dict[str, Any] = {
        "to": plan.target,
        "repository": plan.repository,
        "revision": plan.revision,
        "files": [{"path": file.path, "bytes": file.num_bytes} for file in plan.files],
    }
    return result | (
        {"dry_run": True} if args.dry_run else {"address": upload(plan, token_to_mirror=args.token_to_mirror)}
    )
