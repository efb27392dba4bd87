"""The student that ships: chosen, written as files, described, verified and used."""
