"""Prepared data: what a family says about it (`spec`), how it is stored (`parquet`), read (`loader`) and made
(`prepare`)."""
