"""The words of the embedded corpus: names and sentence templates, in a training part and a held-out part.

`NAMES[kind]` holds an entity type and two disjoint lists of words; `TRAIN` and `HELD_OUT` are the templates, text files
beside this one. Blank lines separate templates: the sentence, then indented its readings: groups of a label and the
`subject>object` pairs that it holds for, with a comma between groups. A template lists pairs that are clear from its
text alone, the unrelated ones too, so that its words never give the label away. A slot is a kind and perhaps a number
(`{person2}`), after a colon the particle of a word that ends in a consonant (`{person:은}`); `kin` is a person with the
surname of `person`. All text is our own and all people are invented.
"""

from itertools import product
from pathlib import Path
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

TRAIN, HELD_OUT = (
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("sample_train.txt", "sample_held_out.txt")
)
