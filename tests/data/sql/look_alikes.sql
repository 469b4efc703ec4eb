CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT, age INT, country TEXT, email TEXT UNIQUE);
CREATE TABLE posts(id INTEGER PRIMARY KEY, user_id INT REFERENCES users(id), title TEXT, score INT, created TEXT, deleted_at TEXT);
CREATE TABLE likes(user_id INT, post_id INT, PRIMARY KEY(user_id, post_id));
INSERT INTO users VALUES (1,'Ann',30,'US','a@x'),(2,'Bo',25,NULL,NULL),(3,'Cy',NULL,'FR','c@x');
INSERT INTO posts VALUES (1,1,'Hello World',5,'2024-01-01',NULL),(2,1,'SQL tips',10,'2024-02-01',NULL),(3,2,'abc',NULL,'2024-02-15','2024-03-01');
INSERT INTO likes VALUES (1,3),(2,1),(3,1);
