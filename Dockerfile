# The image of all of Dagster's services and of the server of the models. Validated as a file, not built: there was no container engine at hand.
FROM python:3.12.11-slim-bookworm

# A bare index may serve a CUDA build of torch, gigabytes large; name the index of CPU wheels to keep the image small:
#   docker compose build --build-arg PIP_EXTRA_INDEX_URL=<index of CPU wheels>
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 DAGSTER_HOME=/app/.dagster

RUN useradd --create-home --uid 1000 app && mkdir -p /app/.dagster /app/warehouse/data \
    && ln -s /app/pipelines/dagster.yaml /app/.dagster/dagster.yaml && chown -R app /app
WORKDIR /app

# Dependencies first, so that a change of code does not install them again.
COPY pyproject.toml constraints.txt README.md ./
COPY reqdedup/__init__.py reqdedup/__init__.py
RUN PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL" pip install --constraint constraints.txt --editable '.[train,serve,ann,dagster,stack]'

COPY --chown=app . .
USER app
EXPOSE 3000
# Alone, without docker-compose.yml: web server, daemon and code servers in one container, the history in SQLite.
CMD ["dagster", "dev", "--workspace", "pipelines/workspace.yaml", "--host", "0.0.0.0", "--port", "3000"]
