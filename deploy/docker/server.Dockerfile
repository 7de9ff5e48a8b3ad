# The control plane: no torch, no engine, no compiler. `deploy/README.md` says how it is built.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# The building machine's own settings of pip. They stay in this stage.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
WORKDIR /source
COPY . .
RUN python3 deploy/install.py --only server --folder /opt/tunesmith

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tunesmith control plane" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
RUN echo "tunesmith:x:65532:65532::/var/lib/tunesmith:/usr/sbin/nologin" >> /etc/passwd \
    && echo "tunesmith:x:65532:" >> /etc/group \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/tunesmith
COPY --from=build /opt/tunesmith /opt/tunesmith
ENV PATH=/opt/tunesmith/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/tunesmith \
    TUNESMITH_HOME=/var/lib/tunesmith \
    TUNESMITH_HOST=0.0.0.0
USER 65532:65532
WORKDIR /var/lib/tunesmith
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-IS", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["tunesmithd"]
CMD ["server"]
