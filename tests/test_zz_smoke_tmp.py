def test_it(tiny, table, ko_mini, examples):
    assert len(table)==60
    print(table.lengths.max(), len(tiny[1]))
