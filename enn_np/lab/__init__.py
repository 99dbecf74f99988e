"""The laboratory: what is measured. table says what there is, inputs what it learns from, runner trains, pages show."""
