"""Places: where artefacts lie, behind one Protocol over text names. One file a kind of place."""
