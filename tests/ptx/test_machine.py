"""The interpreter itself, on PTX written by hand: single instructions, divergence, barriers, and mistakes found."""

import math
import struct

import numpy as np
import pytest
from ptx import machine
from ptx.memory import AccessError, GlobalMemory
from ptx.program import parse
from ptx.warp import AbsentLane

HEADER = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 out, .param .u32 n)
{
    .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<9>; .reg .f64 %fd<9>;
    .shared .align 4 .b8 buffer[256];
    ld.param.u64 %rd1, [out];
    cvta.to.global.u64 %rd1, %rd1;
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %tid.x;
    mad.lo.u32 %r3, %ctaid.x, %ntid.x, %r2;
    mul.wide.u32 %rd2, %r3, 4;
    add.s64 %rd2, %rd1, %rd2;
"""


def run(body, threads=64, blocks=1, n=64, out=None):
    memory = GlobalMemory()
    out = np.zeros(threads * blocks, np.uint32) if out is None else out
    parameters = struct.pack("<QI", memory.add(out), n)
    program = parse(HEADER + body + "ret;\n}")
    counts = machine.run(program, memory, (blocks, 1, 1), (threads, 1, 1), parameters)
    return out, [machine.by_kind(program, count) for count in counts]


def f32(value):
    return "0f" + struct.pack(">f", value).hex()


def f64(value):
    return "0d" + struct.pack(">d", value).hex()


SINGLE = [
    ("add.s32 %r9, 5, -7;", 2**32 - 2),
    ("sub.u32 %r9, 3, 5;", 2**32 - 2),
    ("mul.lo.s32 %r9, -3, 7;", 2**32 - 21),
    ("mul.hi.u32 %r9, 4000000000, 4000000000;", 4000000000**2 >> 32),
    ("mul.hi.s32 %r9, -4, 1073741824;", 2**32 - 1),
    ("div.s32 %r9, -7, 2;", 2**32 - 3),
    ("rem.s32 %r9, -7, 2;", 2**32 - 1),
    ("min.s32 %r9, -7, 2;", 2**32 - 7),
    ("max.u32 %r9, -7, 2;", 2**32 - 7),
    ("shl.b32 %r9, 3, 31;", 2**31),
    ("shl.b32 %r9, 3, 32;", 0),
    ("shr.s32 %r9, -8, 40;", 2**32 - 1),
    ("shr.u32 %r9, -8, 29;", 7),
    ("shf.l.wrap.b32 %r9, 0x80000000, 1, 1;", 3),
    ("shf.r.wrap.b32 %r9, 4, 1, 2;", 0x40000001),
    ("bfe.u32 %r9, 0xABCD, 4, 8;", 0xBC),
    ("bfe.s32 %r9, 0xF0, 4, 4;", 2**32 - 1),
    ("bfi.b32 %r9, 0xF, 0, 8, 4;", 0xF00),
    ("prmt.b32 %r9, 0x33221100, 0x77665544, 0x7531;", 0x77553311),
    ("prmt.b32 %r9, 0x000000FF, 0, 0x8888;", 2**32 - 1),
    ("lop3.b32 %r9, 12, 10, 6, 0x96;", 12 ^ 10 ^ 6),
    ("lop3.b32 %r9, 12, 10, 6, 0xF8;", 12 | (10 & 6)),
    ("clz.b32 %r9, 255;", 24),
    ("brev.b32 %r9, 1;", 2**31),
    ("popc.b32 %r9, 0xFF00;", 8),
    ("not.b32 %r9, 0;", 2**32 - 1),
    ("xor.b32 %r9, 12, 10;", 6),
    ("mov.b64 %rd9, {%r1, 7}; mov.b64 {%r8, %r9}, %rd9;", 7),
    ("cvt.u16.u32 %h1, 70000; cvt.u32.u16 %r9, %h1;", 70000 - 65536),
    ("mov.u32 %r8, 200; cvt.s32.s8 %r9, %r8;", 2**32 - 56),
    (f"cvt.rni.s32.f32 %r9, {f32(2.5)};", 2),
    (f"cvt.rzi.s32.f32 %r9, {f32(-2.7)};", 2**32 - 2),
    (f"cvt.rzi.u32.f32 %r9, {f32(-2.7)};", 0),
    (f"cvt.rzi.s32.f32 %r9, {f32(1e20)};", 2**31 - 1),
    (f"cvt.rmi.f32.f32 %f1, {f32(-2.5)}; mov.b32 %r9, %f1;", struct.unpack("<I", struct.pack("<f", -3))[0]),
    (f"cvt.rn.f16.f32 %h1, {f32(1.0009765)}; cvt.u32.u16 %r9, %h1;", 0x3C01),
    (f"cvt.rn.bf16.f32 %h1, {f32(1.01171875)}; cvt.u32.u16 %r9, %h1;", 0x3F82),
    (f"cvt.rn.f32.f64 %f1, {f64(math.pi)}; mov.b32 %r9, %f1;", 0x40490FDB),
    (f"fma.rn.f32 %f1, {f32(3)}, {f32(0.5)}, {f32(-1)}; mov.b32 %r9, %f1;", 0x3F000000),
    (f"setp.lt.f32 %p1, {f32(1)}, {f32(2)}; selp.b32 %r9, 11, 22, %p1;", 11),
    ("setp.lt.f32 %p1, 0f7FC00000, 0f3F800000; selp.b32 %r9, 11, 22, %p1;", 22),
    ("setp.geu.f32 %p1, 0f7FC00000, 0f3F800000; selp.b32 %r9, 11, 22, %p1;", 11),
    ("setp.ne.f32 %p1, 0f7FC00000, 0f7FC00000; selp.b32 %r9, 11, 22, %p1;", 22),
    ("setp.gt.s32 %p1, -1, 1; setp.gt.or.u32 %p2|%p3, -1, 1, %p1; selp.b32 %r9, 11, 22, %p2;", 11),
    ("min.f32 %f1, 0f7FC00000, 0f3F800000; mov.b32 %r9, %f1;", 0x3F800000),
    (f"sqrt.rn.f32 %f1, {f32(9)}; rcp.rn.f32 %f1, %f1; mul.f32 %f1, %f1, {f32(3)}; mov.b32 %r9, %f1;", 0x3F800000),
    (f"ex2.approx.f32 %f1, {f32(3)}; lg2.approx.f32 %f1, %f1; cvt.rni.u32.f32 %r9, %f1;", 3),
    (f"copysign.f32 %f1, {f32(-1)}, {f32(2)}; mov.b32 %r9, %f1;", 0xC0000000),
    ("mov.pred %p1, -1; selp.b32 %r9, 1, 2, %p1;", 1),
    ("testp.finite.f32 %p1, 0f7F800000; selp.b32 %r9, 1, 2, %p1;", 2),
]


@pytest.mark.parametrize(
    "code, expected", SINGLE, ids=[code.split()[0] + f" {i}" for i, (code, _) in enumerate(SINGLE)]
)
def test_single_instruction(code, expected):
    out, _ = run(code + "st.global.b32 [%rd2], %r9;")
    assert (out == expected).all(), hex(out[0])


def test_divergent_loop_and_counts():
    """Each thread loops as often as its number says."""
    out, (by_threads, by_warps) = run(
        """
        mov.u32 %r9, 0; mov.u32 %r10, 0;
        $again: setp.ge.u32 %p1, %r10, %r2;
        @%p1 bra $through;
        add.u32 %r9, %r9, %r10;
        add.u32 %r10, %r10, 1;
        bra $again;
        $through: st.global.u32 [%rd2], %r9;
        """
    )
    assert (out == [t * (t - 1) // 2 for t in range(64)]).all()
    assert by_threads["st.global"] == 64 and by_warps["st.global"] == 2
    assert by_threads["setp"] == sum(range(1, 65))
    assert by_warps["setp"] == 32 + 64


@pytest.mark.parametrize("name, expected", [("max", 0x40000000), ("max.NaN", 0x7FC00000)])
def test_maximum_of_a_nan(name, expected):
    out, _ = run(f"mov.b32 %f1, 0x7FC00000; {name}.f32 %f2, %f1, {f32(2.0)}; st.global.f32 [%rd2], %f2;")
    assert (out == expected).all(), hex(out[0])


def test_places():
    """Where instructions come from: the line, and the lines into which it was inlined."""
    program = parse(
        HEADER
        + """
        .loc 1 5 3
        mov.u32 %r9, 0;
        .loc 2 70 1, function_name $L, inlined_at 1 5 3
        mov.u32 %r9, 1;
        .loc 2 90 1, function_name $L, inlined_at 2 70 1
        mov.u32 %r9, 2;
        .loc 1 6 3
        $label: mov.u32 %r9, 3;
        }
        .file 1 "/some/where/a.cu"
        .file 2 "b.cuh"
        """
    )
    assert [i.place for i in program.instructions[-4:]] == [
        (("a.cu", 5),),
        (("b.cuh", 70), ("a.cu", 5)),
        (("b.cuh", 90), ("b.cuh", 70), ("a.cu", 5)),
        (("a.cu", 6),),
    ]


def test_jump_table():
    out, _ = run(
        """
        and.b32 %r8, %r2, 1;
        $table: .branchtargets $even, $odd;
        brx.idx %r8, $table;
        $even: mov.u32 %r9, 10; bra $store;
        $odd: mov.u32 %r9, 11;
        $store: st.global.u32 [%rd2], %r9;
        """
    )
    assert (out.reshape(-1, 2) == [10, 11]).all()


REVERSE = """
    mov.u32 %r4, buffer; shl.b32 %r5, %r2, 2; add.u32 %r6, %r4, %r5;
    st.shared.u32 [%r6], %r2;
    bar.sync 0;
    sub.u32 %r7, 63, %r2; shl.b32 %r7, %r7, 2; add.u32 %r7, %r4, %r7;
    ld.shared.u32 %r9, [%r7{offset}];
    st.global.u32 [%rd2], %r9;
"""


def test_shared_memory_and_barrier():
    out, _ = run(REVERSE.format(offset=""), blocks=3)
    assert (out.reshape(3, 64) == np.arange(64)[::-1]).all()


def test_generic_address_of_shared_memory():
    out, _ = run(
        """
        mov.u64 %rd5, buffer; cvta.shared.u64 %rd6, %rd5; mul.wide.u32 %rd7, %r2, 4; add.s64 %rd6, %rd6, %rd7;
        st.u32 [%rd6], %r2; bar.sync 0; ld.u32 %r9, [%rd6]; st.global.u32 [%rd2], %r9;
        """
    )
    assert (out == np.arange(64)).all()


def test_vectors_and_packed_registers():
    out, _ = run(
        """
        and.b32 %r4, %r2, 1; setp.eq.u32 %p1, %r4, 0;
        @%p1 st.global.v2.u32 [%rd2], {%r2, 77};
        """
    )
    assert (out.reshape(-1, 2) == [[i, 77] for i in range(0, 64, 2)]).all()


def test_shuffles_votes_and_reductions():
    out, _ = run(
        """
        shfl.sync.bfly.b32 %r4, %r2, 1, 0x1f, 0xffffffff;
        shfl.sync.down.b32 %r5|%p1, %r2, 3, 0x1f, 0xffffffff;
        setp.lt.u32 %p2, %r2, 40;
        vote.sync.ballot.b32 %r6, %p2, 0xffffffff;
        redux.sync.add.u32 %r7, %r4, 0xffffffff;
        selp.u32 %r5, %r5, 1000, %p1;
        mad.lo.u32 %r9, %r5, 1, %r6;
        add.u32 %r9, %r9, %r7;
        st.global.u32 [%rd2], %r9;
        """
    )
    for t in range(64):
        ballot, total = (0xFFFFFFFF, 496) if t < 32 else (0xFF, 496 + 1024)
        down = t + 3 if t % 32 < 29 else 1000
        assert out[t] == (down + ballot + total) % 2**32


def test_atomics_across_blocks():
    out, _ = run(
        "atom.global.add.u32 %r9, [%rd1], 1; st.global.u32 [%rd2+400], %r9;", blocks=2, out=np.zeros(300, "u4")
    )
    assert out[0] == 128 and sorted(out[100:228]) == list(range(128))


@pytest.mark.parametrize("code", ["st.global.u32 [%rd2+4], %r2;", "ld.global.u32 %r9, [%rd2+-4];"])
def test_global_access_out_of_bounds(code):
    with pytest.raises(AccessError, match="global access"):
        run(code)


def test_shared_access_out_of_bounds():
    with pytest.raises(AccessError, match="shared access at byte 256 of 256"):
        run(REVERSE.format(offset="+4"))


def test_misaligned_access():
    with pytest.raises(IndexError, match="misaligned"):
        run("st.global.v2.u32 [%rd2], {%r2, %r2};")


def test_unwritten_shared_memory_is_nan():
    out, _ = run("mov.u32 %r4, buffer; ld.shared.u32 %r9, [%r4]; st.global.u32 [%rd2], %r9;")
    assert np.isnan(out.view(np.float32)).all()


def test_divergent_barrier():
    with pytest.raises(machine.KernelError, match=r"bar\.sync"):
        run("setp.lt.u32 %p1, %r2, 5; @%p1 ret; bar.sync 0;")


def test_shuffle_from_an_absent_lane():
    with pytest.raises(AbsentLane):
        run("setp.lt.u32 %p1, %r2, 5; @%p1 ret; shfl.sync.idx.b32 %r9, %r2, 0, 0x1f, 0xffffffff;")


def test_unknown_instructions_are_named():
    with pytest.raises(NotImplementedError, match="sad"):
        run("sad.u32 %r9, %r1, %r2, 0;")


@pytest.mark.parametrize("kind, limit", [("tf32", 2e-3), ("f16", 1e-3), ("bf16", 8e-3)])
def test_matrix_product(kind, limit):
    """One m16n8k8 (tf32) or m16n8k16 (16 bit) product, operands laid out as the PTX manual draws them."""
    depth = 8 if kind == "tf32" else 16
    rng = np.random.default_rng(0)
    a, b = rng.random((16, depth), np.float32), rng.random((depth, 8), np.float32)
    lane = np.arange(32)
    group, member = lane >> 2, lane & 3
    memory = GlobalMemory()
    if kind == "tf32":
        words_a = [a[group + 8 * (i & 1), member + 4 * (i >> 1)].view(np.uint32) for i in range(4)]
        words_b = [b[member + 4 * i, group].view(np.uint32) for i in range(2)]
    else:

        def pair(low, high):
            if kind == "f16":
                low, high = (v.astype(np.float16).view(np.uint16).astype(np.uint32) for v in (low, high))
            else:
                low, high = (v.view(np.uint32) >> 16 for v in (low, high))
            return low | high << np.uint32(16)

        rows = [(group + 8 * (i & 1), 2 * member + 8 * (i >> 1)) for i in range(4)]
        words_a = [pair(a[r, c], a[r, c + 1]) for r, c in rows]
        words_b = [pair(b[2 * member + 8 * i, group], b[2 * member + 8 * i + 1, group]) for i in range(2)]
    words = np.ascontiguousarray(np.stack([*words_a, *words_b]).astype(np.uint32))
    out = np.zeros((4, 32), np.float32)
    loads = "".join(f"ld.global.b32 %r{10 + i}, [%rd3+{128 * i}];" for i in range(6))
    stores = "".join(f"st.global.f32 [%rd2+{128 * i}], %f{i};" for i in range(4))
    body = f"""
        ld.param.u64 %rd3, [words]; add.s64 %rd3, %rd3, %rd5;
        {loads}
        mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32
            {{%f0, %f1, %f2, %f3}}, {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, {{{", ".join([f32(0)] * 4)}}};
        {stores} ret; }}"""
    source = HEADER.replace(".param .u32 n", ".param .u64 words").replace("ld.param.u32 %r1, [n];", "")
    source = source.replace("add.s64 %rd2, %rd1, %rd2;", "mov.u64 %rd5, %rd2; add.s64 %rd2, %rd1, %rd2;")
    parameters = struct.pack("<QQ", memory.add(out), memory.add(words))
    machine.run(parse(source + body), memory, (1, 1, 1), (32, 1, 1), parameters)
    product = np.zeros((16, 8), np.float32)
    for i in range(4):
        product[group + 8 * (i >> 1), 2 * member + (i & 1)] = out[i]
    assert np.abs(product - a @ b).max() < limit * np.abs(a @ b).max()
    seen = {
        "tf32": lambda v: (v.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32),
        "f16": lambda v: v.astype(np.float16),
        "bf16": lambda v: (v.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
    }[kind]
    cut_off = seen(a).astype(np.float64) @ seen(b).astype(np.float64) - product
    assert (cut_off >= 0).all() and (cut_off < 2.0**-23 * product).all() and cut_off.any()
