"""Arrow tables as LeRobot has them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

INSTALL = 'pip install "spatia[rollouts]"'


def pyarrow() -> Any:
    """The library. Raises ImportError with the install line."""
    try:
        import pyarrow as found
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the lerobot format needs {error.name}, which is not here; install it: {INSTALL}") from error
    return found


def tasks_table(pa: Any, tasks: list[str]) -> Any:
    """The table that pandas reads as a frame with `task_index` as column and the tasks as index, for LeRobot looks tasks up so.

    The metadata is that of https://pandas.pydata.org/docs/development/developer.html#storing-pandas-dataframe-objects-in-apache-parquet-format
    """
    index = "__index_level_0__"
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    labels = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}
    told = {
        "index_columns": [index],
        "column_indexes": [labels],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
    }
    told_schema = pa.schema(
        [("task_index", pa.int64()), (index, pa.string())], metadata={"pandas": json.dumps(told | {"pandas_version": "2.2.0"})}
    )
    return pa.table({"task_index": range(len(tasks)), index: tasks}, schema=told_schema)


def arrow_schema(pa: Any, features: dict[str, dict[str, Any]]) -> Any:
    """The schema of LeRobot features: a scalar where the shape is (1,), otherwise a list of fixed length."""
    kinds = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
    fields = []
    for name, feature in features.items():
        kind, size = kinds[feature["dtype"]], feature["shape"][0]
        fields.append(pa.field(name, kind if size == 1 else pa.list_(kind, size)))
    return pa.schema(fields)


def arrow_array(pa: Any, kind: Any, values: list[Any]) -> Any:
    """Values of one column, one per row, as an array of type `kind`."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.array([value.reshape(-1)[0] if isinstance(value, np.ndarray) else value for value in values], kind)
    flat = np.concatenate([np.asarray(value).reshape(-1) for value in values])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(kind.value_type.to_pandas_dtype())), kind.list_size)
