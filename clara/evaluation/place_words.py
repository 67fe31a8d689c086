"""Words that are told by for the places among answers: of geography, and names of countries."""

from __future__ import annotations


def listed(text: str, separator: str | None = None) -> frozenset[str]:
    """The entries of a list that is written as one text; None separates them at blanks."""
    return frozenset(entry.strip() for entry in text.split(separator))


GEOGRAPHY = listed(
    """
    africa america americas antarctica antarctic arctic asia atlantic australasia balkans baltic
    caribbean caucasus eurasia europe mediterranean melanesia micronesia oceania pacific polynesia
    sahara sahel scandinavia siberia
    archipelago atoll bay beach canyon cape cay channel city continent county creek delta desert
    district fjord forest glacier gulf hill hills island islands isle isles isthmus lagoon lake
    lakes mount mountain mountains ocean oblast peak peninsula plain plateau point port prefecture
    province rift ridge river rivers sea sound strait street town valley village volcano waterfall
    avenue road square
    """
)
"""In lower case."""

COUNTRIES = listed(
    """
    afghanistan, albania, algeria, andorra, angola, antigua and barbuda, argentina, armenia, aruba,
    australia, austria, azerbaijan, bahamas, bahrain, bangladesh, barbados, belarus, belgium,
    belize, benin, bermuda, bhutan, bolivia, bosnia and herzegovina, botswana, brazil, brunei,
    bulgaria, burkina faso, burma, burundi, cabo verde, cambodia, cameroon, canada, cape verde,
    central african republic, chile, china, colombia, comoros, congo, costa rica, croatia, cuba,
    cyprus, czechia, czech republic, democratic republic of the congo, denmark, djibouti, dominica,
    dominican republic, ecuador, egypt, el salvador, england, equatorial guinea, eritrea, estonia,
    eswatini, ethiopia, fiji, finland, france, gabon, gambia, gaza, germany, ghana, gibraltar,
    great britain, greece, greenland, grenada, guatemala, guinea, guinea-bissau, guyana, haiti,
    holland, honduras, hong kong, hungary, iceland, india, indonesia, iran, iraq, ireland, israel,
    italy, ivory coast, jamaica, japan, jordan, kazakhstan, kenya, kiribati, kosovo, kuwait,
    kyrgyzstan, laos, latvia, lebanon, lesotho, liberia, libya, liechtenstein, lithuania,
    luxembourg, macau, madagascar, malawi, malaysia, maldives, mali, malta, mauritania, mauritius,
    mexico, moldova, monaco, mongolia, montenegro, morocco, mozambique, myanmar, namibia, nauru,
    nepal, netherlands, new zealand, nicaragua, niger, nigeria, north korea, north macedonia,
    northern ireland, norway, oman, pakistan, palau, palestine, panama, papua new guinea, paraguay,
    peru, philippines, poland, portugal, puerto rico, qatar, romania, russia, rwanda, samoa,
    san marino, sao tome and principe, saudi arabia, scotland, senegal, serbia, seychelles,
    sierra leone, singapore, slovakia, slovenia, somalia, south africa, south korea, south sudan,
    soviet union, spain, sri lanka, sudan, suriname, sweden, switzerland, syria, taiwan,
    tajikistan, tanzania, thailand, timor-leste, togo, tonga, trinidad and tobago, tunisia,
    turkey, turkiye, turkmenistan, tuvalu, uganda, ukraine, united arab emirates, united kingdom,
    united states, uruguay, uzbekistan, vanuatu, vatican city, venezuela, vietnam, wales,
    west bank, yemen, yugoslavia, zambia, zimbabwe, uk, us, u.s, usa
    """,
    separator=",",
)
"""In lower case, without "the"."""
