# PostgreSQL from Debian's packages, told what the official image is told.
ARG BASE
FROM ${BASE}
RUN echo "postgres-image:x:999:999::/:/bin/sh" >> /etc/passwd && install -d -o 999 -g 999 -m 0700 /var/lib/postgresql/data
COPY postgres.sh /postgres.sh
ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin
ENTRYPOINT ["sh", "/postgres.sh"]
