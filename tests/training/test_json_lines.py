from flow_grpo.training.json_lines import append_row, drop_epochs_from, read_rows


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    for epoch in (0, 1):
        append_row(path, {"epoch": epoch, "text": 'a "quoted" word\u2028'})
    assert read_rows(path) == [
        {"epoch": 0, "text": 'a "quoted" word\u2028'},
        {"epoch": 1, "text": 'a "quoted" word\u2028'},
    ]


def test_a_resumed_run_forgets_the_rows_that_it_writes_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    drop_epochs_from(path, 0)
    assert not path.exists()
    for epoch in (0, 5, 5, 10):
        append_row(path, {"epoch": epoch})
    drop_epochs_from(path, 5)
    assert read_rows(path) == [{"epoch": 0}]


def test_a_torn_last_line_is_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"epoch": 0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"epoch": 1')
    assert read_rows(path) == [{"epoch": 0}]
    drop_epochs_from(path, 1)
    assert path.read_text(encoding="utf-8") == '{"epoch": 0}\n'


def test_a_row_after_a_torn_one_stands_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"epoch": 0})
    with path.open("ab") as file:
        file.write(b'{"epoch": 1, "text": "\xff\x00')  # what a full disk or a power failure leaves
    append_row(path, {"epoch": 2})
    append_row(path, {"epoch": 3})
    assert read_rows(path) == [{"epoch": 0}, {"epoch": 2}, {"epoch": 3}]
