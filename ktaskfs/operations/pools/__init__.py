"""Operations on the machine's pools of huge pages."""
