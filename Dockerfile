FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY jobs jobs
COPY producer producer
COPY worker worker
COPY configs configs
RUN pip install --no-cache-dir --constraint constraints.txt .
ENTRYPOINT []
CMD ["imagemill", "worker"]
