"""Lines of real TPU programs that a reader could stumble over, each cut to what matters."""

import pytest

from t5x_style.compiling.hlo import Buffer, read_program
from t5x_style.compiling.hlo.arrays import arrays, total_bytes

HEAD = """HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "/somewhere/t5x_style/models/attention.py"
2 "/somewhere/t5x_style/models/decoder.py"

FunctionNames
1 "attend"
2 "block"

FileLocations
1 {file_name_id=1 function_name_id=1 line=38 end_line=38 column=15 end_column=15}
2 {file_name_id=2 function_name_id=2 line=77 end_line=77 column=4 end_column=4}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=1 parent_frame_id=3}


"""
MESH = {"data": 2, "fsdp": 2}

KERNEL = """
ENTRY %main (q: bf16[4,1024,128]) -> bf16[4,1024,128] {
  %q = bf16[4,1024,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %splash_mha_fwd_residuals.1 = (f32[512,128]{1,0:T(8,128)}, bf16[4,1024,128]{2,1,0:T(8,128)(2,1)}) custom-call(%q, %q, /*index=5*/%q), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[4,1024,128]{2,1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"q_layout\\": 1}"
}}, metadata={op_name="jit(step)/pallas_call" stack_frame_id=2}, backend_config={"custom_call_config":{"body":"TUzv="}}
  ROOT %result = bf16[4,1024,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%splash_mha_fwd_residuals.1), index=1, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}
}
"""  # noqa: E501


def test_the_metadata_of_a_kernel_spills_over_lines():
    program = read_program(HEAD + KERNEL)
    assert program.kernel_calls == {"splash_mha_fwd_residuals": 1}
    assert {buffer.source for buffer in program.largest_buffers} == {
        "models/attention.py:38 < models/decoder.py:77"
    }


@pytest.mark.parametrize(
    ("kind", "whole", "wire"),
    [
        ("all-gather", 512, 384),
        ("all-reduce", 128, 192),
        ("reduce-scatter", 128, 96),
        ("all-to-all", 128, 96),
        ("collective-permute", 128, 128),
    ],
)
def test_bytes_on_the_wire_of_every_kind(kind, whole, wire):
    # 128 bytes of operand, four chips.
    groups = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
    if kind != "collective-permute":
        groups = "replica_groups={{0,1,2,3}}"
    (found,) = read_program(
        HEAD
        + f"""
ENTRY %main (x: bf16[64]) -> bf16[64] {{
  %x = bf16[64]{{0:T(128)(2,1)}} parameter(0)
  ROOT %result = bf16[64]{{0:T(128)(2,1)}} {kind}(%x), channel_id=1, {groups}
}}
""",
        MESH,
    ).collectives
    assert (found.kind, found.bytes, found.wire_bytes) == (kind, whole, wire)


@pytest.mark.parametrize(
    ("kind", "wire"), [("all-reduce", 171), ("reduce-scatter", 86), ("all-to-all", 86)]
)
def test_a_part_of_a_byte_on_the_wire_is_a_whole_one(kind, wire):
    """Two thirds of 128 bytes are 85 1/3, and an all-reduce sends them twice."""
    (found,) = read_program(
        HEAD
        + f"""
ENTRY %main (x: bf16[64]) -> bf16[64] {{
  %x = bf16[64]{{0:T(128)(2,1)}} parameter(0)
  ROOT %result = bf16[64]{{0:T(128)(2,1)}} {kind}(%x), channel_id=1, replica_groups={{{{0,1,2}}}}
}}
"""
    ).collectives
    assert (found.group_size, found.wire_bytes) == (3, wire)


CONTINUED = """
%fused_computation.32 (param_0: bf16[128,512]) -> (bf16[128,512], bf16[256,512], s32[2], u32[]) {
  %param_0 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.32 = bf16[256,512]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=4, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/dot_general" stack_frame_id=2}
  ROOT %custom-call.2 = (bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[256,512]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) custom-call(%all-gather.32), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.70 (param_1: bf16[128,512], param_2: bf16[256,512], param_3: bf16[256,256]) -> (bf16[256,256], bf16[256,512]) {
  %param_1 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_2 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %param_3 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %convolution.39 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} convolution(%param_3, %param_3), dim_labels=bf_oi->bf
  %all-gather.34 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_1), channel_id=4, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
  ROOT %tuple.64 = (bf16[256,256]{1,0:T(8,128)(2,1)S(1)}, bf16[256,512]{1,0:T(8,128)(2,1)S(1)}) tuple(%convolution.39, %all-gather.34)
}

%fused_computation.34 (param_4: bf16[128,512], param_5: bf16[256,512]) -> bf16[256,512] {
  %param_4 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_5 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.36 = bf16[256,512]{1,0:T(8,128)(2,1)} all-gather(%param_4), channel_id=4, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
  ROOT %custom-call.4 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} custom-call(%param_4, %param_5, %all-gather.36), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: bf16[128,512], y: bf16[256,256]) -> bf16[256,512] {
  %x = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %y = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %async-collective-start = (bf16[128,512]{1,0:T(8,128)(2,1)S(1)}, bf16[256,512]{1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) fusion(%x), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.32
  %element.1 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=1
  %fusion.70 = (bf16[256,256]{1,0:T(8,128)(2,1)S(1)}, bf16[256,512]{1,0:T(8,128)(2,1)S(1)}) fusion(%x, %element.1, %y), kind=kOutput, output_to_operand_aliasing={{1}: (1, {})}, calls=%async_collective_fusion.70, backend_config={"window_config":{"estimated_cycles":"2154"}}
  %element.2 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%fusion.70), index=1
  ROOT %async-collective-done = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %element.2), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%fused_computation.34
}
"""  # noqa: E501


def test_a_gather_that_is_spread_over_fusions_runs_once_and_is_hidden():
    program = read_program(HEAD + CONTINUED, MESH)
    (gather,) = program.collectives
    assert (gather.kind, gather.axis, gather.count) == ("all-gather", "fsdp", 1)
    assert (gather.bytes, gather.wire_bytes) == (256 * 512 * 2, 256 * 512)
    assert (gather.overlapped, gather.cover_cycles) == (True, 2154)
    assert gather.source == "models/attention.py:38 < models/decoder.py:77"
    assert program.estimated_cycles == {"matmul": 2154}
    assert program.matmul_flops == 2 * 256**3


SCATTERED = """
%add.clone (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a, %b), backend_config={"window_config":{"estimated_cycles":"1185"}}
}

%all-reduce-scatter.2.clone.1 (input_0: bf16[256,512]) -> bf16[128,512] {
  %input_0 = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.11 = bf16[256,512]{1,0:T(8,128)(2,1)} all-reduce(%input_0), channel_id=1, replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%add.clone
  %partition-id.11 = u32[] partition-id()
  %constant.177 = u32[] constant(0)
  ROOT %dynamic-slice.46 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.11, %partition-id.11, %constant.177), dynamic_slice_sizes={128,512}
}

ENTRY %main (x: bf16[256,512]) -> bf16[128,512] {
  %x = bf16[256,512]{1,0:T(8,128)(2,1)S(1)} parameter(0), metadata={op_name="x" stack_frame_id=1}
  ROOT %fusion.3 = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2.clone.1
}
"""  # noqa: E501


@pytest.mark.parametrize(("chip", "overlapped"), [("v5e", False), ("v5p", None)])
def test_an_all_reduce_of_which_each_keeps_its_part_is_a_reduce_scatter(chip, overlapped):
    (scatter,) = read_program(HEAD + SCATTERED, MESH, chip).collectives
    assert (scatter.kind, scatter.axis) == ("reduce-scatter", "fsdp")
    assert (scatter.bytes, scatter.wire_bytes) == (256 * 512 * 2, 256 * 512)
    assert scatter.overlapped is overlapped
    assert scatter.source == "models/decoder.py:77"  # of what it reduces: it has no line itself


OFFLOADED = """
%called_computation (param_0: bf16[512,2048], param_1: token[]) -> bf16[1024,2048] {
  %param_1 = token[] parameter(1)
  %param_0 = bf16[512,2048]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.19 = bf16[1024,2048]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=13, replica_groups={{0,2},{1,3}}, dimensions={0}, use_global_device_ids=true
}, execution_thread="sparsecore"

%fused_computation.1 (param_2: bf16[64,64]) -> bf16[64,64] {
  %param_2 = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %negate.1 = bf16[64,64]{1,0:T(8,128)(2,1)} negate(%param_2)
}

ENTRY %main (x: bf16[512,2048], y: bf16[64,64]) -> bf16[1024,2048] {
  %x = bf16[512,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(1)
  %prepare = token[] custom-call(), custom_call_target="PrepareAsyncCallStart"
  %call-start = ((bf16[512,2048]{1,0:T(8,128)(2,1)}, token[]), bf16[1024,2048]{1,0:T(8,128)(2,1)}) call-start(%x, %prepare), async_execution_thread="sparsecore", to_apply=%called_computation, metadata={op_name="jit(step)/dot_general" stack_frame_id=2}
  %fusion.1 = bf16[64,64]{1,0:T(8,128)(2,1)} fusion(%y), kind=kLoop, calls=%fused_computation.1, backend_config={"window_config":{"estimated_cycles":"700"}}
  ROOT %call-done = bf16[1024,2048]{1,0:T(8,128)(2,1)} call-done(%call-start)
}
"""  # noqa: E501


def test_a_gather_on_the_sparse_core_is_hidden_by_what_runs_meanwhile():
    (gather,) = read_program(HEAD + OFFLOADED, MESH, "v6e").collectives
    assert (gather.kind, gather.axis, gather.bytes) == ("all-gather", "data", 1024 * 2048 * 2)
    assert (gather.overlapped, gather.cover_cycles) == (True, 700)
    assert gather.source == "models/attention.py:38 < models/decoder.py:77"
    waits = OFFLOADED.replace("estimated_cycles", "other_cycles")
    (gather,) = read_program(HEAD + waits, MESH, "v6e").collectives
    assert (gather.overlapped, gather.cover_cycles) == (False, 0)


def test_an_unknown_estimate_is_none_and_combiners_run_inside_their_collective():
    largest = OFFLOADED.replace('"700"', '"9223372036854775807"')
    assert read_program(HEAD + largest).estimated_cycles == {}
    assert read_program(HEAD + SCATTERED).estimated_cycles == {}


@pytest.mark.parametrize(
    ("shape", "bytes_", "padded"),
    [
        ("bf16[16,256]{1,0:T(8,128)(2,1)}", 8192, 8192),
        ("bf16[20,60]{1,0:T(8,128)(2,1)}", 2400, 2 * 24 * 128),
        ("f32[20,60]{0,1:T(8,128)}", 4800, 4 * 64 * 128),
        ("f32[3,7,100]{2,1,0:T(8,128)S(1)}", 8400, 4 * 3 * 8 * 128),
        ("s32[]{:T(128)}", 4, 512),
        ("pred[7]", 7, 7),
        ("s4[9]{0}", 5, 5),
        ("f8e4m3fn[4,4]{1,0}", 16, 16),
    ],
)
def test_bytes_of_a_shape_and_of_its_tiles(shape, bytes_, padded):
    (array,) = arrays(shape)
    assert (array.bytes, array.padded_bytes) == (bytes_, padded)
    assert array.memory == (1 if "S(1)" in shape else 0)


def test_bytes_of_a_tuple_are_those_of_its_arrays():
    shape = "((bf16[4,8]{1,0:T(8,128)(2,1)}, token[]), f32[2]{0}, /*index=5*/u32[]{:S(2)})"
    assert total_bytes(shape) == 4 * 8 * 2 + 2 * 4 + 4


def test_buffers_are_those_that_a_line_makes_in_main_memory():
    text = HEAD + CONTINUED.replace("(2,1)S(1)}", "(2,1)}")
    assert read_program(text).largest_buffers == [
        Buffer(256 * 512 * 2, 0, "bf16[256,512]", 1, ""),
        Buffer(256 * 256 * 2, 0, "bf16[256,256]", 1, ""),
    ]


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation in 5 characters"):
        read_program("hello")


COVERED = """
ENTRY %main (x: bf16[64,64], y: bf16[64,64]) -> bf16[256,64] {
  %x = bf16[64,64]{1,0} parameter(0)
  %y = bf16[64,64]{1,0} parameter(1), metadata={op_name="y" stack_frame_id=1}
  BEFORE
  %start = (bf16[64,64]{1,0}, bf16[256,64]{1,0}) all-gather-start(%x, %y), channel_id=1, replica_groups={{0,1,2,3}}
  BETWEEN
  ROOT %done = bf16[256,64]{1,0} all-gather-done(%start)
  AFTER
}
"""  # noqa: E501
SPLASH = '%splash = bf16[64,64]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"'


@pytest.mark.parametrize("place", ["BEFORE", "BETWEEN", "AFTER"])
def test_a_kernel_hides_a_gather_that_is_under_way(place):
    text = COVERED.replace(place, SPLASH)
    (found,) = read_program(HEAD + text, MESH, "v5e").collectives
    assert (found.overlapped, found.cover_cycles) == (place == "BETWEEN", 0)
    # The line of what it gathers first; the second operand's is another's.
    assert found.source == ""


KINDS = """
%matmul (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %convolution = f32[8,8]{1,0} convolution(%a, %a), dim_labels=bf_io->bf
  ROOT %tanh = f32[8,8]{1,0} tanh(%convolution)
}

%slice (b: f32[8,8]) -> f32[8,8] {
  %b = f32[8,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %dynamic-slice = f32[8,8]{1,0} dynamic-slice(%b, %zero, %zero), dynamic_slice_sizes={8,8}
  ROOT %convert = f32[8,8]{1,0} convert(%dynamic-slice)
}

%scaled (c: f32[8,8]) -> f32[8,8] {
  %c = f32[8,8]{1,0} parameter(0)
  %zero.1 = s32[] constant(0)
  %dynamic-slice.1 = f32[8,8]{1,0} dynamic-slice(%c, %zero.1, %zero.1), dynamic_slice_sizes={8,8}
  ROOT %add = f32[8,8]{1,0} add(%dynamic-slice.1, %dynamic-slice.1)
}

%layout (d: f32[8,8]) -> f32[8,8] {
  %d = f32[8,8]{1,0} parameter(0)
  ROOT %transpose = f32[8,8]{1,0} transpose(%d), dimensions={1,0}
}

%converted (e: f32[8,8]) -> bf16[8,8] {
  %e = f32[8,8]{1,0} parameter(0)
  ROOT %convert.1 = bf16[8,8]{1,0} convert(%e)
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %f.1 = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%matmul, backend_config={"window_config":{"estimated_cycles":"10"}}
  %f.2 = f32[8,8]{1,0} fusion(%f.1), kind=kLoop, calls=%slice, backend_config={"window_config":{"estimated_cycles":"20"}}
  %f.3 = f32[8,8]{1,0} fusion(%f.2), kind=kLoop, calls=%scaled, backend_config={"window_config":{"estimated_cycles":"30"}}
  %f.4 = f32[8,8]{1,0} fusion(%f.3), kind=kLoop, calls=%layout, backend_config={"window_config":{"estimated_cycles":"40"}}
  %f.5 = bf16[8,8]{1,0} fusion(%f.4), kind=kLoop, calls=%converted, backend_config={"window_config":{"estimated_cycles":"50"}}
  %copy = f32[8,8]{0,1} copy(%f.4), backend_config={"window_config":{"estimated_cycles":"60"}}
  ROOT %sort = f32[8,8]{1,0} sort(%copy), backend_config={"window_config":{"estimated_cycles":"70"}}
}
"""  # noqa: E501


def test_kinds_of_operations_and_the_costliest_first():
    program = read_program(HEAD + KINDS)
    assert [(row.name, row.kind, row.cycles) for row in program.operations] == [
        ("sort", "other", 70),
        ("copy", "layout", 60),
        ("f.5", "elementwise", 50),
        ("f.4", "layout", 40),
        ("f.3", "elementwise", 30),
        ("f.2", "slice", 20),
        ("f.1", "matmul", 10),
    ]
    assert list(program.estimated_cycles.items()) == [
        ("layout", 100), ("elementwise", 80), ("other", 70), ("slice", 20), ("matmul", 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "source"),
    [
        (
            'op_name="jit(step)/layers/attend/dot" stack_frame_id=2',
            "models/attention.py:38 < models/decoder.py:77",
        ),
        # Of three lines, the innermost and its caller.
        (
            'op_name="jit(step)/layers/attend/dot" stack_frame_id=3',
            "models/attention.py:38 < models/attention.py:38",
        ),
        ('op_name="jit(step)/layers/attend/dot"', "layers/attend/dot"),
        ('op_name="jit(step)/layers/attend/dot" stack_frame_id=9', "layers/attend/dot"),
        ('op_type="dot"', ""),
    ],
)
def test_an_operation_without_a_line_has_the_end_of_its_name(metadata, source):
    text = KINDS.replace('"70"}}', f'"70"}}}}, metadata={{{metadata}}}')
    first = read_program(HEAD + text).operations[0]
    assert first.name == "sort"
    assert first.source == source or (source.endswith("< ") and source in first.source)
