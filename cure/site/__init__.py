"""The pages that a reviewer opens: `site/<profile>/`, made from published tables, figures and executed notebooks.

The folder needs nothing outside itself and no network: one style sheet, one small script, pictures as files. Only stage
`render` imports this package.
"""
