"""Operations on ordinary files, one or all below a directory."""
