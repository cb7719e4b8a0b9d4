"""The words of the embedded corpus: names and sentence templates, in a training part and a held-out part.

`NAMES[kind]` holds an entity type and two disjoint lists of words; `TRAIN` and `HELD_OUT` hold templates. Blank lines
separate them: the sentence, then indented its readings: groups of a label and the `subject>object` pairs that it holds
for, with a comma between groups. A template lists pairs that are clear from its text alone, the unrelated ones too, so
that its words never give the label away. A slot is a kind and perhaps a number (`{person2}`), after a colon the
particle that a word ending in a consonant takes (`{person:은}`); `kin` is a person with the surname of `person`.
All text is our own and all people are invented.
"""

from itertools import product
from typing import NamedTuple


class Names(NamedTuple):
    """Words of one kind of entity; the held-out ones are shared out between validation and test."""

    type: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _compound(first: str, second: str, separator: str = "") -> tuple[str, ...]:
    return tuple(head + separator + tail for tail, head in product(second.split(), first.split()))


def _dates(years: range, days: bool) -> tuple[str, ...]:
    if not days:
        return tuple(f"{year}년" for year in years)
    return tuple(f"{year}년 {month}월 {day}일" for year, month, day in product(years, range(1, 13), range(1, 29)))


SURNAMES = "강 고 김 문 박 배 서 송 신 안 오 유 윤 이 임 장 전 정 조 최 한"
INDUSTRIES = "건설 물산 바이오 소프트 식품 전자 제약 중공업 항공 화학"

NAMES: dict[str, Names] = {
    "person": Names(
        "PER",
        _compound(SURNAMES, "가온 다현 도영 동하 무경 민설 보담 새봄 서율 선후 성채 수완 시온 아린 연제 예담 우람")
        + _compound(SURNAMES, "원빈 유나 은결 인하 재겸 정담 주은 지형 찬솔 태경 하율 해인 현서 호연 희도"),
        _compound(
            SURNAMES, "건우 규림 나율 도겸 라희 명선 미르 범준 상아 소율 승리 여진 용하 윤슬 제하 채린 한별 효담"
        ),
    ),
    "foreigner": Names(
        "PER",
        _compound(
            "네이선 다비드 로랑 루카 마르타 베라 소피 안드레 엘리나 이반", "로시 모로 베커 실바 카스트로 콜린스", " "
        ),
        _compound("그레타 니콜라 라울 미카엘 빅토르 아니타 올가 헨리크", "뒤몽 라르센 멘도사 슈미트 포포프", " "),
    ),
    "stage": Names(
        "PER",
        _words("늘봄 달무리 도담 라온 먹구름 미리내 바람꽃 백운 새벽별 송암 여울 연두 유월 은하수 청파 초롱 하늬 해담"),
        _words("가랑비 나린 노을 단비 마루 물결 산들 소나기 온새미 월천 이든 죽헌"),
    ),
    "company": Names(
        "ORG",
        _compound(
            "가람 금솔산 누리 다온 도래 동보 미래로 백두 새한 성우 세림 아침 영신 우진 정원 창해 태산 한결", INDUSTRIES
        ),
        _compound("글샘 나래 두리 마루온 보람 서린 온누리 유림 지평 청솔 하늘샘 흥진", INDUSTRIES),
    ),
    "group": Names(
        "ORG",
        _compound("광진 남선 산울 솔빛 명신 삼우 선진원 서라벌 우성 일광 조양 한백", "그룹 홀딩스"),
        _compound("해솔 달구 예림 세방 오성 천일 태평 은호", "그룹 홀딩스"),
    ),
    "agency": Names(
        "ORG",
        _compound("국립 한국 중앙", "기상연구원 문화교류원 산림진흥원 생태연구원 지질조사원 해양개발원"),
        _compound("국립 한국 중앙", "교통연구원 농업진흥원 디자인개발원 우주과학원"),
    ),
    "alliance": Names(
        "ORG",
        _compound("국제 동아시아 세계 전국", "지역언론연맹 도서관협회 무역협회 소상공인연합회 시민연대 의료인연맹"),
        _compound("국제 동아시아 세계 전국", "간호사협회 청년농민연합회 작가연맹 환경연대"),
    ),
    "party": Names(
        "ORG",
        _words("국민희망당 나라사랑당 녹색미래당 민생개혁당 새물결당 시민행복당 우리자유당 정의개혁당 통합전진연합"),
        _words("국민화합당 내일당 노동평등당 늘푸른당 민주전진당 새길당 자유번영당 참여연합당"),
    ),
    "team": Names(
        "ORG",
        _compound("고양 대전 부산 성남 수원 용인 인천 평택", "드래곤즈 샤크스 스타즈 코멧츠 호크스", " "),
        _compound("광주 구미 대구 안양 울산 창원", "나이츠 울브스 이글스 팰컨스", " "),
    ),
    "league": Names(
        "ORG",
        _words("남부리그 내셔널리그 드림리그 슈퍼리그 우먼리그 챌린지리그 프리미어컵 한강리그"),
        _words("골든리그 북부리그 새싹리그 유니온리그 코리아컵 퓨처리그"),
    ),
    "school": Names(
        "ORG",
        _compound("경문 광덕 남천 대경 동명 명륜 보성원 상록 서강원 성심 숭문원 영남원", "대학교 예술대학교"),
        _compound("가야원 금란 덕성원 문화원 배영 수도원 정동 한서원", "대학교 예술대학교"),
    ),
    "band": Names(
        "ORG",
        _words("가로등 서른즈음 스트로베리즈 열두시 오렌지카펫 우주정거장 일곱계단 첫차 크림슨 푸른기린"),
        _words("골목대장 네온사이렌 루프탑 목요일밤 미드나잇잼 별사탕 종이배 하얀고래"),
    ),
    "acronym": Names(
        "ORG",
        _words("ACM BKE CNT DWX EMR GKC HBS IVR JTC KDX LPN MSU NGR OTB PKL QSA RBF SWN"),
        _words("AHN BTR CLM DKR EUP FSN GML HWK KPU NVC TLR WEM"),
    ),
    "city": Names(
        "LOC",
        _words("강릉 경주 공주 광양 군산 김해 목포 부여 속초 안동 여수 영월 원주 전주 제천 진주 청주 춘천 충주 통영"),
        _words("거제 나주 남원 당진 밀양 삼척 상주 서산 순천 태백 포항 홍천"),
    ),
    "country": Names(
        "LOC",
        _words(
            "그리스 독일 멕시코 브라질 스웨덴 스페인 이집트 이탈리아 인도 칠레 캐나다 케냐 태국 폴란드 프랑스 헝가리"
        ),
        _words("네덜란드 노르웨이 덴마크 모로코 베트남 아르헨티나 오스트리아 체코 페루 포르투갈 핀란드 호주"),
    ),
    "post": Names(
        "POH",
        _words("고문 부사장 부회장 사장 상무 이사장 전무 총괄대표 회장"),
        _words("감사 대표이사 본부장 부대표 사외이사 상임이사 의장 최고경영자"),
    ),
    "job": Names(
        "POH",
        _words("가수 건축가 교수 기자 무용가 연주자 배우 번역가 변호사 사진작가 소설가 시인 역사학자 작곡가 화가"),
        _words("극작가 기타리스트 동화작가 디자이너 만화가 물리학자 방송인 성악가 수필가 영화감독 조각가 철학자"),
    ),
    "product": Names(
        "POH",
        _compound("누리 다솜 라임 바로 반디 새론 아토", "노트 로봇 워치 카메라 폰 3 태블릿 2"),
        _compound("가비 나르샤 루미 모아 소리 해찬", "드론 믹서 스피커 이어폰 7 프린터"),
    ),
    "work": Names(
        "POH",
        _compound("겨울 고요한 낯선 느린 마지막 바다의 붉은 빈 어린 푸른", "골목 기차 노래 아침 저녁 정원 편지", " "),
        _compound("깊은 먼 무너진 여름 오래된 은빛 잃어버린 하얀", "거울 그림자 섬 숲 약속 창문", " "),
    ),
    "religion": Names(
        "ORG",
        _words("감리교 개신교 대종교 불교 성공회 원불교 천도교 천주교"),
        _words("침례교 도교 유교 유대교 이슬람교 장로교 정교회 힌두교"),
    ),
    "ideology": Names(
        "POH",
        _words("민족주의 보수주의 사회민주주의 생태주의 자유주의 중도주의 진보주의"),
        _words("공화주의 국제주의 반공주의 복지주의 사회주의 시장주의 평화주의 환경주의"),
    ),
    "early_year": Names("DAT", _dates(range(1921, 1970, 2), False), _dates(range(1922, 1970, 2), False)),
    "late_year": Names("DAT", _dates(range(1987, 2024, 2), False), _dates(range(1988, 2024, 2), False)),
    "early_date": Names("DAT", _dates(range(1921, 1970, 2), True), _dates(range(1922, 1970, 2), True)),
    "late_date": Names("DAT", _dates(range(1987, 2024, 2), True), _dates(range(1988, 2024, 2), True)),
    "number": Names(
        "NOH",
        tuple(f"{count:,}명" for count in range(41, 9000, 10)),
        tuple(f"{count:,}명" for count in range(46, 9000, 10)),
    ),
}

TRAIN = """
{company}의 {person} {post:은} {city}에서 열린 행사에서 {company2:과} 협력하겠다고 밝혔다.
  org:top_members/employees company>person, per:employee_of person>company, per:title person>post,
  no_relation company2>person person>company2 company>city company>company2

{person} {company} {post:이} {late_date} 공장에서 {company2}의 {person2} {post2:을} 만났다.
  per:employee_of person>company person2>company2, org:top_members/employees company>person company2>person2,
  per:title person>post person2>post2,
  no_relation person2>company company>person2 company2>person person>company2 person>post2 person2>post
    company>late_date

{company:은} {late_date} 이사회를 열어 {person:을} 새 대표로 선임했고, {company2}의 {person2:은} 이를 환영했다.
  org:top_members/employees company>person company2>person2, per:employee_of person>company person2>company2,
  no_relation company>late_date company2>person company>person2 person>company2 person2>company person>late_date

{person:은} {early_year} {company}에 입사해 부장까지 지냈고, {person2:은} {company2}에서 근무했다.
  per:employee_of person>company person2>company2, org:top_members/employees company>person,
  no_relation person>company2 person2>company person>early_year company>early_year company>person2 company2>person

{team}의 공격수 {person:은} {team2:과} 치른 경기에서 수비수 {person2:을} 제치고 득점했다.
  per:employee_of person>team person2>team2, org:top_members/employees team>person,
  no_relation person>team2 team2>person person2>team person>person2

{person} {party} 의원은 {city} 유세에서 {person2} {party2} 의원의 발언을 비판했다.
  per:employee_of person>party person2>party2, org:top_members/employees party>person party2>person2,
  no_relation person>party2 party2>person person2>party party>person2 party>city person>person2

{agency:은} {person} 원장이 {city:을} 찾아 {company} 임직원을 만났다고 전했다.
  org:top_members/employees agency>person, per:employee_of person>agency,
  no_relation company>person person>company agency>city company>agency person>city

{person:은} {agency}에서 연구원으로 근무하면서 {company:과} 공동 연구를 진행했다.
  per:employee_of person>agency, org:top_members/employees agency>person,
  no_relation person>company company>person agency>company

{job} {person:은} {company}의 초대로 {city}에서 강연했고, {job2} {person2:이} 사회를 보았다.
  per:title person>job person2>job2, no_relation person>job2 person2>job person>city person>company company>person

{person:은} {city}에서 활동하는 {job}이며, {person2:은} 그를 자주 비평한 {job2}이다.
  per:title person>job person2>job2, no_relation person>job2 person2>job person>person2 person2>city

{early_date} {city}에서 {job} {person:이} {person2:을} 처음 만났다.
  per:title person>job,
  no_relation person2>job person>early_date person>city person>person2 person2>city person2>early_date

{company:은} {early_year} {person:이} {city}에서 설립한 회사로, 지금은 {person2:이} 대표를 맡고 있다.
  org:founded company>early_year, org:founded_by company>person, org:top_members/employees company>person2,
  per:employee_of person2>company,
  no_relation person>early_year person2>early_year person>city person2>city person>person2

{person:이} 창업한 {company:은} {late_year} {company2:을} 인수했다.
  org:founded_by company>person, no_relation company2>person company>late_year company2>late_year person>company2

{school:은} 교육자 {person:이} {early_year}에 세운 학교이며, {person2:은} {late_year} 이곳을 졸업했다.
  org:founded_by school>person, org:founded school>early_year, per:schools_attended person2>school,
  no_relation school>person2 school>late_year person2>early_year person>late_year person>person2

{alliance}의 설립자는 {person}이고, {agency}의 설립자는 {person2}이다.
  org:founded_by alliance>person agency>person2, no_relation alliance>person2 agency>person

{person:과} 친한 {person2:은} {late_date} {company:을} 설립했고 {company2}에서 투자를 받았다.
  org:founded_by company>person2, org:founded company>late_date,
  no_relation company>person company2>person2 company2>late_date person>company person2>late_date

{band:은} {early_year} 결성되어 활동하다가 {late_year} 해체되었고, {band2:은} {late_year2} 무대에 올랐다.
  org:founded band>early_year, org:dissolved band>late_year,
  no_relation band>late_year2 band2>early_year band2>late_year band2>late_year2 band>band2

{agency:은} {early_year}에 창립되었고, {company:은} {late_year}에 해산되었다.
  org:founded agency>early_year, org:dissolved company>late_year,
  no_relation agency>late_year company>early_year company>agency

{party:은} {early_date} 창당되어 {late_date} 해산하였으며, {party2:은} {early_year} 선거에서 승리했다.
  org:founded party>early_date, org:dissolved party>late_date,
  no_relation party2>early_date party2>late_date party>early_year party2>early_year party>party2

{team:은} {early_year}에 창단했지만 {late_year} 해체되었고, {person:은} {late_year2} 은퇴했다.
  org:founded team>early_year, org:dissolved team>late_year,
  no_relation team>late_year2 person>early_year person>late_year person>late_year2

{company:은} {late_year}에 문을 닫았고, 같은 업종의 {company2:은} {late_year2}에 설립되었다.
  org:dissolved company>late_year, org:founded company2>late_year2,
  no_relation company>late_year2 company2>late_year company>company2

{alliance:은} {late_date} 총회에서 해산했으며, 의장 {person:은} {late_year} 취임했다.
  org:dissolved alliance>late_date, org:top_members/employees alliance>person, per:employee_of person>alliance,
  no_relation person>late_date alliance>late_year person>late_year

{company:은} {city}에 본사를 두고 있으며, {city2}에 있는 {company2:과} 거래한다.
  org:place_of_headquarters company>city company2>city2, no_relation company>city2 company2>city company>company2

{city}에 위치한 {agency:은} {city2}에서 열린 박람회에 참가했다.
  org:place_of_headquarters agency>city, no_relation agency>city2

{city}에 본부를 둔 {alliance:은} {city2}에서 {person:을} 의장으로 뽑았다.
  org:place_of_headquarters alliance>city, org:top_members/employees alliance>person,
  per:employee_of person>alliance, no_relation alliance>city2 person>city person>city2

{company:은} {late_year} 본사를 {city:으로} 옮겼으나, {company2:은} {city2} 본사를 지켰다.
  org:place_of_headquarters company>city company2>city2,
  no_relation company>late_year company>city2 company2>city company2>late_year

{school:은} {city}에 있는 사립 학교이며, {person:은} {city2}에서 이 학교의 역사를 강의했다.
  org:place_of_headquarters school>city, no_relation school>city2 person>city person>city2

{company:은} 줄여서 {acronym:이라고} 부르며, {company2:과} 경쟁한다.
  org:alternate_names company>acronym acronym>company,
  no_relation company2>acronym acronym>company2 company>company2

{company}({acronym})의 {person} {post:은} {company2}({acronym2}) 측과 계약을 맺었다.
  org:alternate_names company>acronym company2>acronym2 acronym>company, org:top_members/employees acronym>person,
  per:employee_of person>acronym, per:title person>post,
  no_relation company>acronym2 company2>acronym acronym2>person person>acronym2 acronym>acronym2

{party:은} {late_year} 이름을 {party2:으로} 바꾸었으나, {party3:은} 이름을 지켰다.
  org:alternate_names party>party2 party2>party,
  no_relation party>party3 party3>party2 party2>party3 party>late_year

{company}의 옛 이름은 {company2}이며, 주요 고객은 {company3}이다.
  org:alternate_names company>company2 company2>company,
  no_relation company>company3 company3>company2 company3>company

흔히 {acronym:으로} 알려진 {alliance:은} {company:과} 함께 {city}에서 행사를 열었다.
  org:alternate_names alliance>acronym acronym>alliance,
  no_relation company>acronym acronym>company alliance>company acronym>city alliance>city

{group} 계열사인 {company:은} {company2:과} 합작하기로 했다.
  org:member_of company>group, org:members group>company, no_relation company2>group group>company2 company>company2

{group:은} {company:을} 자회사로 두고 있고, {company2:은} {group2}에 속해 있다.
  org:member_of company>group company2>group2, org:members group>company group2>company2,
  no_relation company>group2 company2>group group>company2 group2>company

{team:은} {league} 소속 구단으로, {league2} 소속인 {team2:과} 친선 경기를 치렀다.
  org:member_of team>league team2>league2, org:members league>team league2>team2,
  no_relation team>league2 team2>league league>team2 league2>team

{country:은} {alliance}의 회원국이며, {country2:은} 아직 가입하지 않았다.
  org:members alliance>country, no_relation alliance>country2

{agency:은} {agency2} 산하 기관으로, {company}에 자문을 제공한다.
  org:member_of agency>agency2, org:members agency2>agency,
  no_relation company>agency2 company>agency agency2>company agency>company

{alliance}에는 {company:과} {company2:이} 회원사로 가입했지만 {company3:은} 참여하지 않았다.
  org:member_of company>alliance company2>alliance, org:members alliance>company alliance>company2,
  no_relation company3>alliance alliance>company3 company>company3

{party:은} {ideology:을} 내세우는 정당이고, {party2:은} {ideology2:을} 내세운다.
  org:political/religious_affiliation party>ideology party2>ideology2,
  no_relation party>ideology2 party2>ideology party>party2

{school:은} {religion} 재단이 운영하는 학교이며, {school2:은} {religion2} 계열이다.
  org:political/religious_affiliation school>religion school2>religion2,
  no_relation school>religion2 school2>religion school>school2

{ideology} 성향의 {party:은} {ideology2} 진영에 선 {party2:을} 비판했다.
  org:political/religious_affiliation party>ideology party2>ideology2, no_relation party>ideology2 party2>ideology

{alliance:은} {religion} 신자들이 만든 단체로 {city}에 본부가 있으며, {company}의 후원을 받는다.
  org:political/religious_affiliation alliance>religion, org:place_of_headquarters alliance>city,
  no_relation company>religion company>city alliance>company

{religion} 정신을 바탕으로 {person:이} 설립한 {school:은} {school2:과} 교류한다.
  org:political/religious_affiliation school>religion, org:founded_by school>person,
  no_relation school2>religion school2>person school>school2

{company:은} {late_date} 신제품 {product:을} 출시했고, {company2:은} {product2:을} 출시했다.
  org:product company>product company2>product2,
  no_relation company>product2 company2>product company>late_date company>company2

{company2} 직원들은 {company:이} 개발한 {product:을} 사용하고 있다.
  org:product company>product, no_relation company2>product company>company2

{product:은} {company:이} 생산하는 제품으로, {company2}의 {person} {post:은} 이를 높이 평가했다.
  org:product company>product, per:title person>post, org:top_members/employees company2>person,
  per:employee_of person>company2, no_relation company2>product person>product company>person

{company}의 대표 제품인 {product:은} {country}에서 {product2}보다 많이 팔렸다.
  org:product company>product, no_relation company>product2 company>country

{person} {company} {post:은} 자사가 만든 {product:을} {company2}에 공급한다고 말했다.
  org:product company>product, per:employee_of person>company, org:top_members/employees company>person,
  per:title person>post, no_relation company2>product company2>person person>company2

{company}의 임직원은 {number}이며, 이번 행사에는 {number2:이} 방문했다.
  org:number_of_employees/members company>number, no_relation company>number2

{alliance:은} 회원 {number:을} 두고 있으며 {city} 집회에는 {number2:이} 참가했다.
  org:number_of_employees/members alliance>number, no_relation alliance>number2 alliance>city

직원 수가 {number}에 이르는 {company:은} 올해 고객 {number2:을} 새로 모았다.
  org:number_of_employees/members company>number, no_relation company>number2

{agency}에는 직원 {number:이} 근무하고, {school}에는 교직원 {number2:이} 근무한다.
  org:number_of_employees/members agency>number school>number2,
  no_relation agency>number2 school>number agency>school

{school:은} 교직원 {number} 규모의 학교이며, 지난해 {number2:이} 입학 시험을 치렀다.
  org:number_of_employees/members school>number, no_relation school>number2

{person:은} {early_date} {city}에서 태어나 {late_date} {city2}에서 사망하였고, {person2:이} 비문을 썼다.
  per:date_of_birth person>early_date, per:place_of_birth person>city, per:date_of_death person>late_date,
  per:place_of_death person>city2, no_relation person2>early_date person2>city person2>late_date person2>city2

{job} {person}({early_date} ~ {late_date})의 생애를 다룬 책을 {person2:이} 펴냈다.
  per:date_of_birth person>early_date, per:date_of_death person>late_date, per:title person>job,
  no_relation person2>early_date person2>late_date person2>job person>person2

{person:은} {early_date}, 동료 {person2:은} {early_date2}에 출생했다.
  per:date_of_birth person>early_date person2>early_date2, per:colleagues person>person2 person2>person,
  no_relation person>early_date2 person2>early_date

{person}의 생일은 {early_date}이고, 그가 {company}에 입사한 날은 {late_date}이다.
  per:date_of_birth person>early_date, per:employee_of person>company,
  no_relation person>late_date company>early_date company>late_date

{early_date}에 태어난 {person:은} {late_date} {person2:과} 처음 만났다.
  per:date_of_birth person>early_date, no_relation person>late_date person2>early_date person2>late_date

{person:은} {late_date} {city}의 한 병원에서 별세했으며, {person2:이} 조문했다.
  per:date_of_death person>late_date, per:place_of_death person>city,
  no_relation person2>late_date person2>city person>person2

{city}에서 태어난 {person:은} {late_date} {city2}에서 세상을 떠났고, {person2:이} 추모사를 읽었다.
  per:place_of_birth person>city, per:date_of_death person>late_date, per:place_of_death person>city2,
  no_relation person2>city person2>city2 person2>late_date

{person:은} {city}에서 숨졌고, {person2:은} {late_date} {city2}에서 그 소식을 들었다.
  per:place_of_death person>city,
  no_relation person>city2 person2>city person2>city2 person>late_date person2>late_date

{person:은} {late_date}에 사망했고 {person2:은} {late_date2}에 은퇴했다.
  per:date_of_death person>late_date, no_relation person>late_date2 person2>late_date person2>late_date2

{person}의 출생지는 {city}이고, {person2}의 출생지는 {city2}이다.
  per:place_of_birth person>city person2>city2, no_relation person>city2 person2>city

{person:은} {city}에서 출생하여 {city2}에서 {person2}의 강연을 들었다.
  per:place_of_birth person>city, no_relation person>city2 person2>city

{person:은} 현재 {city}에 거주하며, {city2}에서 {person2:을} 만났다.
  per:place_of_residence person>city, no_relation person>city2 person2>city person2>city2

{city}에 살고 있는 {person:은} {city2}에서 태어났고 {city3}에서 공연했다.
  per:place_of_residence person>city, per:place_of_birth person>city2, no_relation person>city3

{person:은} {city:으로} 이사해 살면서 {city2}에 위치한 {company}에서 일했다.
  per:place_of_residence person>city, per:employee_of person>company, org:place_of_headquarters company>city2,
  org:top_members/employees company>person, no_relation person>city2 company>city

{person}의 집은 {city}에 있고, {person2:은} {city2}에 거주한다.
  per:place_of_residence person>city person2>city2, no_relation person>city2 person2>city

{person:은} {city}에 정착해 살았고, 여행하던 {city2}에서 사망했으며, {person2:은} {city3}에서 왔다.
  per:place_of_residence person>city, per:place_of_death person>city2,
  no_relation person>city3 person2>city person2>city2

{country} 출신 {job} {foreigner:은} {country2}에서 전시회를 열었다.
  per:origin foreigner>country, per:title foreigner>job, no_relation foreigner>country2

{foreigner:은} {country} 국적의 {job}이며, {country2} 국적인 {foreigner2:과} 자주 편지를 주고받았다.
  per:origin foreigner>country foreigner2>country2, per:title foreigner>job,
  no_relation foreigner>country2 foreigner2>country foreigner2>job

{country}의 {job} {foreigner:은} {country2} 정부의 초청을 거절했다.
  per:origin foreigner>country, per:title foreigner>job, no_relation foreigner>country2

{foreigner:은} {country} 사람으로, {country2}에서 {person:을} 만났다.
  per:origin foreigner>country, no_relation foreigner>country2 person>country person>country2 foreigner>person

{city} 출신인 {person:은} {city2}에서 {person2}의 공연을 보았다.
  per:origin person>city, no_relation person>city2 person2>city person2>city2

{person:은} {school:을} 졸업하고 {school2}에서 교사로 근무했다.
  per:schools_attended person>school, per:employee_of person>school2, org:top_members/employees school2>person,
  no_relation school>person school>school2

{person:은} {school}에서 박사 학위를 받았고, {person2:은} {school2}에 재학 중이다.
  per:schools_attended person>school person2>school2, no_relation person>school2 person2>school

{school}에 입학한 {person:은} {school2} 축제에 초대받았다.
  per:schools_attended person>school, no_relation person>school2

{person}의 모교인 {school:은} {person2:을} 총장으로 임명했다.
  per:schools_attended person>school, org:top_members/employees school>person2, per:employee_of person2>school,
  no_relation person>person2 school>person

{late_year} {school:을} 졸업한 {person:은} {company}에 취직했다.
  per:schools_attended person>school, per:employee_of person>company,
  no_relation person>late_year company>late_year school>late_year company>school

{stage:은} {person}의 예명이고, {stage2:은} {person2}의 예명이다.
  per:alternate_names stage>person person>stage stage2>person2 person2>stage2,
  no_relation stage>person2 person>stage2 stage2>person person2>stage

{job} {stage}의 본명은 {person}이며, {person2:은} 그의 팬이다.
  per:alternate_names stage>person person>stage, per:title stage>job,
  no_relation stage>person2 person2>stage person2>job

{job} {person:은} {stage:이라는} 필명으로 {work:을} 썼고, {person2:은} 서평을 실었다.
  per:alternate_names person>stage stage>person, per:product person>work stage>work, per:title person>job,
  no_relation person2>stage stage>person2 person2>work person2>job

{person}(예명 {stage}) 씨가 {stage2}의 노래를 불렀다.
  per:alternate_names person>stage stage>person, no_relation person>stage2 stage2>person stage>stage2

{stage:으로} 더 잘 알려진 {person:은} {person2}의 공연을 보았다.
  per:alternate_names person>stage stage>person, no_relation person2>stage stage>person2 person>person2

{person}의 호는 {stage}이고, 그의 아들은 {kin}이다.
  per:alternate_names person>stage stage>person, per:children person>kin, per:parents kin>person,
  no_relation kin>stage

{person:은} {city}에서 {kin}의 아들로 태어났다.
  per:parents person>kin, per:children kin>person, per:place_of_birth person>city, no_relation kin>city

{person}의 아버지는 {kin}이고, 어머니는 {person2}이며, 친구로는 {person3:이} 있다.
  per:parents person>kin person>person2, per:children kin>person person2>person, per:spouse kin>person2 person2>kin,
  no_relation person>person3 person3>person kin>person3

{person:은} 딸 {kin:과} 함께 {person2}의 결혼식에 참석했다.
  per:children person>kin, per:parents kin>person, no_relation person>person2 kin>person2 person2>kin person2>person

{person:은} {person2:과} 결혼하여 딸 {kin:을} 낳았고, {person3:이} 축하해 주었다.
  per:spouse person>person2 person2>person, per:children person>kin person2>kin, per:parents kin>person kin>person2,
  no_relation person>person3 person3>person2 person3>kin

{kin:은} {person}의 아버지이며, {person2}의 작품을 수집했다.
  per:parents person>kin, per:children kin>person, no_relation person>person2 kin>person2 person2>person

{person}의 아내 {person2:은} {company}에서 {person3:과} 함께 일했다.
  per:spouse person>person2 person2>person, per:colleagues person2>person3 person3>person2,
  per:employee_of person2>company, no_relation person>person3 person3>person person>company

{person}의 남편은 {person2}이며, 변호는 {person3:이} 맡았다.
  per:spouse person>person2 person2>person, no_relation person>person3 person2>person3 person3>person2

{late_date} {person:은} 배우 {person2:과} 결혼했고, 사회는 {person3:이} 보았다.
  per:spouse person>person2 person2>person,
  no_relation person>late_date person2>late_date person>person3 person3>person2

{person}의 형 {kin:은} {person2:과} 마주쳤다.
  per:siblings person>kin kin>person, no_relation person>person2 kin>person2

{person:은} {kin}의 여동생이고, {person2:은} 이웃에 산다.
  per:siblings person>kin kin>person, no_relation person>person2 person2>kin

{person:과} {kin:은} 남매 사이로, {person2:을} 응원했다.
  per:siblings person>kin kin>person, no_relation person>person2 kin>person2

{person}의 동생은 {job} {kin}이며, {person2:과} 경쟁했다.
  per:siblings person>kin kin>person, per:title kin>job, no_relation person>job kin>person2 person2>job

{person}의 누나 {kin:은} {city}에서 태어나 {school:을} 졸업했다.
  per:siblings person>kin kin>person, per:place_of_birth kin>city, per:schools_attended kin>school,
  no_relation person>city person>school

{person:은} {kin}의 손자로, {person2}의 전기를 읽었다.
  per:other_family person>kin kin>person, no_relation person>person2 kin>person2

{kin:은} {person}의 삼촌이고 {person2}의 집주인이다.
  per:other_family person>kin kin>person, no_relation person>person2 person2>person

{person:은} 사위 {person2:과} 함께 {company:을} 방문해 {person3:을} 만났다.
  per:other_family person>person2 person2>person, no_relation person>person3 person2>person3 person>company

{person}의 조카인 {kin:은} {person2}의 집에서 하숙했다.
  per:other_family person>kin kin>person, no_relation kin>person2 person2>person

{person:은} 시어머니 {person2:을} 모시고 {person3:을} 찾아갔다.
  per:other_family person>person2 person2>person, no_relation person>person3 person3>person2

{person:과} {person2:은} {company}에서 함께 일한 동료 사이이며, {person3:은} {company2} 직원이다.
  per:colleagues person>person2 person2>person, per:employee_of person>company person3>company2,
  no_relation person>person3 person3>person2 person>company2 person3>company

{band}의 멤버 {person:은} 같은 그룹의 {person2:과} 함께 {person3:을} 응원했다.
  per:employee_of person>band person2>band, org:top_members/employees band>person,
  per:colleagues person>person2 person2>person, no_relation person>person3 band>person3 person3>band

{person:은} 팀 동료 {person2}의 도움을 받아 {team:을} 상대로 득점했다.
  per:colleagues person>person2 person2>person, no_relation person>team team>person team>person2

{person:은} {person2:과} 공동 연구를 했으며, {person3}의 이론을 반박했다.
  per:colleagues person>person2 person2>person, no_relation person>person3 person3>person2

{person:은} 소설 {work:을} 썼고, {person2:은} 노래 {work2:을} 작곡했다.
  per:product person>work person2>work2, no_relation person>work2 person2>work person>person2

{work:은} {person:이} 연출한 영화로, {person2:은} 이 영화를 {city}에서 관람했다.
  per:product person>work, no_relation person2>work person>city person2>city

{person}의 대표작 {work:은} {person2:이} 가장 아끼는 작품이다.
  per:product person>work, no_relation person2>work person>person2

{person:은} {person2:이} 작곡한 노래 {work:을} 즐겨 들었다.
  per:product person2>work, no_relation person>work person>person2

{person}의 시집 {work:은} {late_year}에, {person2}의 시집 {work2:은} {late_year2}에 나왔다.
  per:product person>work person2>work2, no_relation person>work2 person2>work person>late_year person2>late_year2

{person:은} 독실한 {religion} 신자이지만, {person2:은} {religion2:을} 믿는다.
  per:religion person>religion person2>religion2, no_relation person>religion2 person2>religion person>person2

{person2}의 반대에도 {person:은} {religion:으로} 개종했다.
  per:religion person>religion, no_relation person2>religion person>person2

{religion} 신자인 {person:은} {religion2} 사원을 둘러보았다.
  per:religion person>religion, no_relation person>religion2

{person:은} {city}에서 {religion}에 입교했으며, {person2:이} 이를 축하했다.
  per:religion person>religion, no_relation person2>religion person>city person2>city

{person}의 종교는 {religion}이고, 그가 졸업한 {school:은} {religion2} 계열 학교이다.
  per:religion person>religion, per:schools_attended person>school,
  org:political/religious_affiliation school>religion2, no_relation person>religion2 school>religion
"""

HELD_OUT = """
{company} {post:을} 맡고 있는 {person:은} {city}에서 {company2}의 {person2:과} 회담했다.
  per:employee_of person>company person2>company2, org:top_members/employees company>person company2>person2,
  per:title person>post,
  no_relation person2>post person>company2 company>person2 company2>person person2>company company>city person>city

{late_date} {person:이} {company}의 대표로 취임하자 {person2} {company2} {post:이} 축하했다.
  per:employee_of person>company person2>company2, org:top_members/employees company>person, per:title person2>post,
  no_relation person>post company>person2 company2>person person>company2 person>late_date company>late_date

{party} 소속 {person} 의원이 토론회에서 {party2}의 {person2} 의원을 비판했다.
  per:employee_of person>party person2>party2, org:top_members/employees party>person party2>person2,
  no_relation person>party2 party>person2 party2>person person2>party

{person:은} {agency} 연구원으로 일하며 {team}의 수비수 {person2:을} 치료했다.
  per:employee_of person>agency person2>team, org:top_members/employees agency>person team>person2,
  no_relation person>team team>person agency>person2 person2>agency

{person:은} {job}이고, {job2} {person2:은} {city}에서 그를 만났다.
  per:title person>job person2>job2, no_relation person>job2 person2>job person2>city person>person2

{city} 행사에는 {job} {person:과} {person2} {company} {post:이} 참석했다.
  per:title person>job person2>post, per:employee_of person2>company, org:top_members/employees company>person2,
  no_relation person>post person2>job person>company company>person company>city

{person:은} {early_year} {company:을} 설립했고, {person2:은} {late_year} 이 회사의 대표로 취임했다.
  org:founded_by company>person, org:founded company>early_year, org:top_members/employees company>person2,
  per:employee_of person2>company, no_relation company>late_year person>early_year person2>late_year person>person2

{school:은} {early_date} 설립되었으며 설립자는 {person}이다. {person2:은} 이 학교를 졸업했다.
  org:founded school>early_date, org:founded_by school>person, per:schools_attended person2>school,
  no_relation school>person2 person>early_date person2>early_date

{company2:을} 인수한 {company:은} {person:이} {late_date} 창업한 회사이다.
  org:founded_by company>person, org:founded company>late_date,
  no_relation company2>person company2>late_date person>late_date company>company2

{late_year} 해체된 {team:과} 달리 {early_year}에 창단한 {team2:은} 지금도 경기에 나선다.
  org:dissolved team>late_year, org:founded team2>early_year, no_relation team>early_year team2>late_year team>team2

{band:은} {late_date} 해체했고, {person:은} {late_year} 새 그룹 {band2:을} 결성했다.
  org:dissolved band>late_date, org:founded band2>late_year, org:founded_by band2>person,
  no_relation band>late_year band2>late_date person>late_date person>late_year

{party:은} {late_year}에 해산되었으며, {party2:은} {late_year2} 선거에서 졌다.
  org:dissolved party>late_year, no_relation party>late_year2 party2>late_year party2>late_year2

{city}에 본사가 있는 {company:은} {city2}에서 {company2:과} 회의를 열었다.
  org:place_of_headquarters company>city, no_relation company>city2 company2>city company2>city2

{agency:은} {city}에 위치하며, {alliance}의 본부는 {city2}에 있다.
  org:place_of_headquarters agency>city alliance>city2, no_relation agency>city2 alliance>city agency>alliance

{person:은} {city}에 있는 {school:을} 졸업하고 {city2}에서 일했다.
  org:place_of_headquarters school>city, per:schools_attended person>school,
  no_relation school>city2 person>city person>city2

{company:은} {acronym:으로} 줄여서 부르고, {company2:은} {acronym2:이라고} 부른다.
  org:alternate_names company>acronym acronym>company company2>acronym2 acronym2>company2,
  no_relation company>acronym2 company2>acronym acronym2>company acronym>acronym2

{late_year} {company:은} 이름을 {company2:으로} 바꾸고 {company3:과} 계약을 맺었다.
  org:alternate_names company>company2 company2>company,
  no_relation company>company3 company2>company3 company3>company2 company>late_year

{city}에서 열린 {alliance}({acronym}) 행사에는 {company:이} 참가했다.
  org:alternate_names alliance>acronym acronym>alliance,
  no_relation company>acronym acronym>city company>alliance acronym>company

{company:은} {group}의 계열사이고, {company2:은} {group2}의 자회사이다.
  org:member_of company>group company2>group2, org:members group>company group2>company2,
  no_relation company>group2 group>company2 company2>group group2>company

{league}에 속한 {team:은} {team2:을} 초청했고, {company:이} 후원했다.
  org:member_of team>league, org:members league>team,
  no_relation team2>league league>team2 league>company company>league team>company

{agency:은} {alliance}에 회원으로 가입했으며, {company:과} 함께 산하 기관인 {agency2:을} 지원한다.
  org:member_of agency>alliance agency2>agency, org:members alliance>agency agency>agency2,
  no_relation company>alliance alliance>company company>agency2

{party:은} {ideology} 성향의 정당으로, {ideology2:을} 내세우는 {party2:과} 맞섰다.
  org:political/religious_affiliation party>ideology party2>ideology2,
  no_relation party>ideology2 party2>ideology party>party2

{religion} 계열의 {school:은} {religion2} 재단이 세운 {school2:과} 협력한다.
  org:political/religious_affiliation school>religion school2>religion2,
  no_relation school>religion2 school2>religion school>school2

{religion} 신자들이 모인 {alliance:은} {city}에서 {party:과} 만났다.
  org:political/religious_affiliation alliance>religion, no_relation party>religion alliance>city

{product:은} {company:이} 개발해 {late_year} 출시한 제품이며, {company2}에서도 사용한다.
  org:product company>product, no_relation company2>product company>late_year

{company:은} {product:을} 생산하고 {company2:은} {product2:을} 생산한다.
  org:product company>product company2>product2, no_relation company>product2 company2>product company>company2

{company} 신제품인 {product:을} {person} {company2} {post:이} 높이 평가했다.
  org:product company>product, per:employee_of person>company2, per:title person>post,
  org:top_members/employees company2>person, no_relation company2>product company>person person>company

{company}에는 임직원 {number:이} 근무하며, 지난해 {number2:이} 공장을 방문했다.
  org:number_of_employees/members company>number, no_relation company>number2

{alliance}의 회원은 {number}이고, {agency}의 직원은 {number2}이다.
  org:number_of_employees/members alliance>number agency>number2,
  no_relation alliance>number2 agency>number alliance>agency

올해 {number:이} 입학한 {school:은} 교직원 수가 {number2}에 이른다.
  org:number_of_employees/members school>number2, no_relation school>number

{job} {person:은} {early_date} 출생하여 {late_date} 별세했고, {person2:이} 책을 펴냈다.
  per:date_of_birth person>early_date, per:date_of_death person>late_date, per:title person>job,
  no_relation person2>early_date person2>late_date person2>job

{late_date} {city}에서 사망한 {person:은} {early_date} {city2}에서 태어났으며, {person2:을} 만난 적이 있다.
  per:date_of_death person>late_date, per:place_of_death person>city, per:date_of_birth person>early_date,
  per:place_of_birth person>city2, no_relation person2>late_date person2>city person2>early_date person2>city2

{person}의 생일은 {early_date}이고 {person2}의 생일은 {early_date2}이다.
  per:date_of_birth person>early_date person2>early_date2,
  no_relation person>early_date2 person2>early_date person>person2

{late_date}에 별세한 {person:은} {city} 출신이며, {person2:은} {late_date2}에 그의 전기를 썼다.
  per:date_of_death person>late_date, per:origin person>city,
  no_relation person>late_date2 person2>late_date person2>city person2>late_date2

{person:은} 여행 중 {city}에서 세상을 떠났고, {person2:은} {city2}에서 태어났다.
  per:place_of_death person>city, per:place_of_birth person2>city2, no_relation person>city2 person2>city

{city:은} {person:이} 숨진 곳이자 {person2}의 출생지이며, {person3:은} {city2}에서 공연했다.
  per:place_of_death person>city, per:place_of_birth person2>city,
  no_relation person3>city person>city2 person2>city2

{person:은} {city}에 살고, {city2}에 거주하는 {person2:과} 자주 만난다.
  per:place_of_residence person>city person2>city2, no_relation person>city2 person2>city

{person:은} {late_year} {city:으로} 이사했고, 지금은 {city2}에서 공연 중이다.
  per:place_of_residence person>city, no_relation person>city2 person>late_year

{person2:은} {city}에 정착한 {person:을} {city2}에서 만났다.
  per:place_of_residence person>city, no_relation person2>city person>city2

{foreigner:은} {country} 출신의 {job}이며 {country2}에서 강연했다.
  per:origin foreigner>country, per:title foreigner>job, no_relation foreigner>country2

{country} 국적의 {foreigner:은} {country2} 사람인 {foreigner2:을} 초청했다.
  per:origin foreigner>country foreigner2>country2,
  no_relation foreigner>country2 foreigner2>country foreigner>foreigner2

{person:은} {city} 출신으로, {person2:을} {city2}에서 만났다.
  per:origin person>city, no_relation person>city2 person2>city person2>city2

{person:은} {school}에 입학했고, {person2:은} {school2}에서 학위를 받았다.
  per:schools_attended person>school person2>school2, no_relation person>school2 person2>school

{person}의 예명은 {stage}이고 {person2}의 본명은 잘 알려지지 않았다.
  per:alternate_names person>stage stage>person, no_relation person2>stage stage>person2 person>person2

{stage:이라는} 필명으로 더 잘 알려진 {person:은} {stage2}의 노래를 즐겨 들었다.
  per:alternate_names person>stage stage>person, no_relation person>stage2 stage2>person stage>stage2

{stage}(본명 {person}) 씨의 팬인 {person2:이} {city}에서 공연을 보았다.
  per:alternate_names person>stage stage>person, no_relation stage>person2 person2>stage person>city

{person:은} {kin}의 딸로 태어나 {person2:과} 결혼했고, {person3:이} 축하해 주었다.
  per:parents person>kin, per:children kin>person, per:spouse person>person2 person2>person,
  no_relation person>person3 person3>person2 kin>person3

{person2:은} {person:과} 그의 아들 {kin:을} 만났다.
  per:children person>kin, per:parents kin>person, no_relation person2>kin person2>person kin>person2 person>person2

{kin:은} {person}의 아버지이고 {person2:은} 이웃이며, {person3:은} {person}의 아내이다.
  per:parents person>kin, per:children kin>person,
  no_relation kin>person2 person>person2 person3>person2 person2>person

{person:은} 아내 {person2:과} 함께 {person3}의 공연을 보았다.
  per:spouse person>person2 person2>person, no_relation person>person3 person3>person2 person2>person3

{person2:은} {person}의 남편이고 {person3:은} 사회를 본 {job}이다.
  per:spouse person>person2 person2>person, per:title person3>job,
  no_relation person>person3 person2>job person3>person2

{kin:은} {person}의 동생이며, {person2:은} {kin}의 이웃이다.
  per:siblings person>kin, no_relation person2>person person>person2

{person:은} 누나 {kin:과} 함께 {person2:을} 응원했다.
  per:siblings person>kin kin>person, no_relation person>person2 kin>person2

{person2:과} 경쟁한 {person:과} {kin:은} 형제 사이이다.
  per:siblings person>kin kin>person, no_relation person>person2 person2>kin

{person:은} 삼촌 {kin:과} 함께 {person2:을} 방문했다.
  per:other_family person>kin kin>person, no_relation person>person2 person2>kin

{kin}의 손자인 {person:은} {person2}의 조카 {person3:과} 마주쳤다.
  per:other_family person>kin kin>person person2>person3 person3>person2,
  no_relation person>person2 person3>kin person>person3

{person2:은} {person}의 사위로, {person3}의 작품을 수집했다.
  per:other_family person>person2 person2>person, no_relation person2>person3 person>person3

{person:은} {band}에서 함께 활동한 동료 {person2:과} {person3}의 집을 찾아갔다.
  per:colleagues person>person2 person2>person, per:employee_of person>band, org:top_members/employees band>person2,
  no_relation person3>band person>person3 band>person3

{person:과} 공동 연구를 한 {person2:은} {person3:을} 비판했다.
  per:colleagues person>person2 person2>person, no_relation person>person3 person2>person3

{person3:을} 만난 {person:은} {company} 동료인 {person2:과} 함께 일했다.
  per:colleagues person>person2 person2>person, per:employee_of person>company,
  no_relation person3>person2 person3>company company>person3

{person:이} 쓴 소설 {work:은} {person2:이} 아끼는 작품이다.
  per:product person>work, no_relation person2>work person>person2

{person:은} 영화 {work:을} 연출했고, {person2:은} {work2:을} 관람했다.
  per:product person>work, no_relation person2>work2 person>work2 person2>work

{person2:은} 노래 {work:을} 작곡한 {person}의 공연을 보았다.
  per:product person>work, no_relation person2>work

{person:은} {religion}에 입교했고, {person2:은} {religion2} 신자이다.
  per:religion person>religion person2>religion2, no_relation person>religion2 person2>religion

{religion:을} 믿는 {person:은} {religion2} 재단이 운영하는 {school:을} 졸업했다.
  per:religion person>religion, org:political/religious_affiliation school>religion2,
  per:schools_attended person>school, no_relation person>religion2 school>religion

{person2:을} 만난 뒤 {person:은} {religion:으로} 개종했다.
  per:religion person>religion, no_relation person2>religion person>person2
"""
