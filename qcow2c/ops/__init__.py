"""Operations on whole images, one file each. They do not import each other."""
