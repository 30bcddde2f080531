import msgspec
import numpy as np
import pytest

from privdfs._chunk import Chunk, Decoded, Round, Share
from privdfs._kinds import Answered, Outcome, Sent
from privdfs._values import Value
from privdfs._wire import Query, Reply, Tensor

ARRAY = np.full((1, 4), 77, np.int8)


@pytest.mark.parametrize(
    "value",
    [
        Share(0, ARRAY),
        Decoded(np.full((1, 2, 2, 1), 77, np.uint8), 0.0),
        Chunk(1, (Share(0, ARRAY),), 0.0, 0.0, sent=Sent((ARRAY,))),
        Round(0.0, (Outcome(0, 0.0, ARRAY),), (4,)),
        Outcome(0, 0.0, ARRAY),
        Sent((ARRAY,), state=ARRAY),
        Answered(ARRAY.astype(np.float32), (), (), None),
        Tensor("share", "INT8", (1, 4), ARRAY.tobytes()),
        Query("branch", (Tensor("share", "INT8", (1, 4), ARRAY.tobytes()),), "logits", 1),
        Reply((Tensor("logits", "INT8", (1, 4), ARRAY.tobytes()),), "OK", 0.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_of_a_call_shows_what_it_holds_or_changes(value: Value) -> None:
    assert repr(value) == f"{value}" == f"{type(value).__name__}(…)"
    assert not value.__rich_repr__(), "rich shows this in place of a repr, also in tracebacks with locals"
    with pytest.raises(AttributeError):
        setattr(value, msgspec.structs.fields(value)[0].name, None)
