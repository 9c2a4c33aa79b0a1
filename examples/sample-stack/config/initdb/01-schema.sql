CREATE TABLE product (
    sku         text PRIMARY KEY,
    name        text NOT NULL,
    family      text NOT NULL,
    price_cents integer NOT NULL CHECK (price_cents >= 0),
    lumens      integer NOT NULL,
    watts       numeric(5, 1) NOT NULL
);

CREATE INDEX product_family ON product (family);

CREATE TABLE review (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku      text NOT NULL REFERENCES product,
    stars    smallint NOT NULL CHECK (stars BETWEEN 1 AND 5),
    body     text NOT NULL,
    written  date NOT NULL
);
