"""What several test files share: small modules to link, and what to compare about a program."""
