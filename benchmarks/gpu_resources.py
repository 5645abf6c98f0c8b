"""What the compiler says of the GPU kernels, without a GPU: registers, spills, shared memory, instructions.

Compiles a step of a case of `benchmarks gpu` for an H100 that is only described (JAX's ahead-of-time
topologies), and reads ptxas' report of each kernel. It needs JAX's CUDA wheels, `pip install
"jax[cuda13]"`, and no device. Two programs of a kernel share a multiprocessor where each takes at most 113
KiB of shared memory and 32,768 registers.

    python -m benchmarks gpu_resources --case A --precision high --set rows=32 warps=4
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
INSTRUCTIONS = ("HGMMA", "HMMA", "LDL", "STL", "LDS", "STS", "LDG", "BAR")
"""Products of Hopper's own and of the older kind, spills, shared and global memory, barriers."""


def compile_step(case: str, precision: str, changes: dict[str, int]) -> None:
    """Compile the step, so that XLA writes what it made where XLA_FLAGS say."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from benchmarks import gpu
    from gmmjax.kernels import tiles

    target = topologies.get_topology_desc(
        platform="cuda", topology_name="1x1x1", topology="1x1x1", target_config=H100
    )
    where = SingleDeviceSharding(target.devices[0])
    plain, work = tiles.of, gpu.CASES[case]
    tiles.of = lambda kernel, size, n: replace(plain(kernel, size, n), **changes)

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=where)

    rows = shape(work.n, work.d) if work.shared else shape(work.lanes, work.n, work.d)
    step = gpu.our_step(work, "pallas", precision).trace(shape(work.lanes, work.k, work.d), rows)
    step.lower(lowering_platforms=("cuda",)).compile()


def tool(name: str) -> str | None:
    """A program of the CUDA wheels, or of the path."""
    for folder in map(Path, sys.path):
        for found in folder.glob(f"nvidia/**/bin/{name}"):
            return str(found)
    return name if any(Path(p, name).exists() for p in os.get_exec_path()) else None


def reports(folder: str) -> Iterator[str]:
    """A line a kernel."""
    ptxas, cuobjdump = tool("ptxas"), tool("cuobjdump")
    if ptxas is None:
        raise SystemExit('ptxas is not there: pip install "jax[cuda13]"')
    shared = {}
    for file in Path(folder).glob("*thunk_sequence.txt"):
        for name, size in re.findall(r" (\w+) grid:.*shared_memory: (\d+) bytes", file.read_text()):
            shared[name] = int(size)
    for file in sorted(Path(folder).glob("*.ptx")):
        text = file.read_text()
        found = re.search(r"\.entry ((?:gmm|kmeans)_\w+)", text)
        if not found:
            continue
        name, cubin = found[1], file.with_suffix(".cubin")
        file.write_text(re.sub(r"\.target sm_90\b", ".target sm_90a", text))
        command = [ptxas, "-v", "-arch=sm_90a", str(file), "-o", str(cubin)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers = re.search(r"Used (\d+) registers", said)
        spills = re.search(r"(\d+) bytes spill stores", said)
        line = f"{name:<16} {registers[1] if registers else '?':>4} registers  "
        line += f"{spills[1] if spills else '?':>5} bytes of spills  "
        line += f"{shared.get(name, 0):>7} of shared memory"
        if cuobjdump is not None:
            code = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True)
            counts = ((op, len(re.findall(rf"\b{op}\b", code.stdout))) for op in INSTRUCTIONS)
            line += "  " + " ".join(f"{op} {count}" for op, count in counts if count)
        yield line


def main() -> int:
    """A line a kernel of each case and precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", default=list("ABCDEFGHI"))
    parser.add_argument("--precision", nargs="+", default=["high", "tf32"])
    parser.add_argument("--set", nargs="*", default=[], help="sides of a tile, as rows=64 warps=8")
    arguments = parser.parse_args()
    changes = {side: int(value) for side, value in (each.split("=") for each in arguments.set)}
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder}"
        import jax

        for case in arguments.case:
            for precision in arguments.precision:
                jax.clear_caches()
                for file in Path(folder).iterdir():
                    if file.is_file():
                        file.unlink()
                try:
                    compile_step(case, precision, changes)
                except jax.errors.JaxRuntimeError as error:
                    print(f"{case} {precision:<5} {str(error).splitlines()[0][:150]}", flush=True)
                    continue
                for line in reports(folder):
                    print(f"{case} {precision:<5} {line}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
