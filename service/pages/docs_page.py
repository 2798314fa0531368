"""``GET /docs``: the OpenAPI document as Swagger UI shows it. Its files come from this service, out of the package
``fastapi-offline``: the page works where there is no other network, and our policy lets it load nothing else."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from service.http.problems import NotFound

router = APIRouter(include_in_schema=False)

_SWAGGER = files("fastapi_offline") / "static"
_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_START = b"""window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
});
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fewbit: API</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@router.get("/docs")
async def get_docs() -> Response:
    return Response(_PAGE, media_type="text/html", headers={"Content-Security-Policy": POLICY})


@router.get("/docs/{name}")
async def get_docs_file(request: Request, name: str) -> Response:
    if name != "start.js" and name not in _FILES:
        raise NotFound(f"There is no /docs/{name}.")
    body, tag = _file(name)
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return Response(body, media_type=_FILES.get(name, "text/javascript"), headers={"ETag": tag})


@cache
def _file(name: str) -> tuple[bytes, str]:
    """Its bytes, and an ETag of them."""
    body = _START if name == "start.js" else (_SWAGGER / name).read_bytes()
    return body, f'"{sha256(body).hexdigest()[:32]}"'
