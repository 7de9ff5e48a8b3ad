# One run: what executors start, and what prepares base models. `deploy/README.md` says how it is built.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# `cpu` or `cuda`: which build of torch.
ARG DEVICE=cpu
# The building machine's own settings of pip. They stay in this stage.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
WORKDIR /source
COPY . .
RUN python3 deploy/install.py --only trainer --folder /opt/tunesmith --device "${DEVICE}"

FROM ${BASE}
# Long runs on a processor compile their layers with it; without a compiler they are slower. Empty: install nothing.
ARG PACKAGES=g++
RUN if [ -n "${PACKAGES}" ]; then apt-get update -q \
    && apt-get install -y -q --no-install-recommends ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/*; fi
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tunesmith trainer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
RUN echo "tunesmith:x:65532:65532::/var/lib/tunesmith:/usr/sbin/nologin" >> /etc/passwd \
    && echo "tunesmith:x:65532:" >> /etc/group \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/tunesmith \
    && install -d -o 65532 -g 65532 -m 0755 /models
COPY --from=build /opt/tunesmith /opt/tunesmith
ENV PATH=/opt/tunesmith/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/tunesmith
USER 65532:65532
WORKDIR /var/lib/tunesmith
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "tunesmith_trainer"]
CMD ["run"]
