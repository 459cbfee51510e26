"""The tools that fuzzing calls."""

from tool_modules import tool_fixture

check_data_tool = tool_fixture("check_data")
prepare_tool = tool_fixture("prepare_data")
infer_tool = tool_fixture("infer")
train_tool = tool_fixture("train")
convert_tool = tool_fixture("convert_checkpoint")
