# An image that serves models: docker build -t transformer-jax . (for a GPU: --build-arg EXTRA=,cuda12)
FROM python:3.12-slim

ARG EXTRA=""
COPY pyproject.toml README.md LICENSE /src/
COPY transformer_jax /src/transformer_jax
COPY configs /src/configs
RUN pip install --no-cache-dir "/src[serve${EXTRA}]" && rm -r /src \
    && useradd --create-home --uid 1000 serve

USER serve
WORKDIR /home/serve
# Compiled programs are kept here; mount a volume, and the next start is quick.
RUN mkdir -p -m 700 .cache/transformer_jax
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
# docker stop sends it: a graceful shutdown.
STOPSIGNAL SIGTERM
ENTRYPOINT ["transformer-jax", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "/models/model"]
