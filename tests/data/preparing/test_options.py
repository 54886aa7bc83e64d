"""Laws of the options: impossible ones are errors before anything is written."""

import math
from typing import Any

import pytest

from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation


def test_impossible_settings_are_errors_before_anything_is_written(source, tmp_path):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"validation_fraction": 1.0}, "1.0"),
        ({"validation_fraction": math.nan}, "nan"),
        ({"vocab_size": 257}, "257 pieces.*at least 258"),
        ({"tokenizer_sample_bytes": 0}, "0 bytes"),
        ({"max_bad_documents": -1}, "at most -1"),
        ({"text_field": ""}, "text field is empty"),
        ({"pack_tokens": 1}, "Windows of 1 tokens"),
        ({"pack_tokens": -8}, "Windows of -8 tokens"),
        ({"long_documents": "cut"}, "no effect without --pack_tokens"),
        ({"chat_template": "turns", "text_field": "body"}, "no effect with --chat_template=turns"),
        ({"host_wait_seconds": math.inf}, "inf seconds"),
        ({"host_wait_seconds": math.nan}, "nan seconds"),
        ({"num_workers": 0}, "0 workers"),
        ({"unit_bytes": -1}, "-1 bytes"),
        ({"host_index": 2, "host_count": 2}, "2 is outside the 2"),
        ({"host_count": 2, "overwrite": True}, "delete the directory yourself"),
        ({"tokenizer_model": "x.model", "vocab_size": 300}, "no effect"),
        ({"tokenizer_model": "x.model"}, "no tokenizer model"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            preparation.prepare_token_set(
                source, tmp_path / "out", preparation_options.PreparationOptions(**options)
            )
    assert not (tmp_path / "out").exists()
