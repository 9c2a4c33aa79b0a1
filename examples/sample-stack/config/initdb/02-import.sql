COPY product FROM '/import/products.csv' WITH (FORMAT csv, HEADER true);
