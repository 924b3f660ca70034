"""`serverchange demo`: runs a migration on real parts, collects what everyone saw, and judges it by the truth.

`options` what was asked for; `fleet` (one folder up) starts the parts; `collector` and `reader` collect facts;
`facts` what is collected; `checks` judges, pure; `progress` and `report` show; `run` puts them in order.
"""
