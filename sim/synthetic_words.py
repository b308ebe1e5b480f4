"""The words of the made-up consortium: conditions with their ICD families, drug classes, and treatments by area.

Everything here was written for this generator from general clinical knowledge; families of codes are numbered by
combining stems, so a code need not exist in ICD. Nothing stands for a real patient or hospital.
"""

from __future__ import annotations

from typing import NamedTuple


class DrugClass(NamedTuple):
    """Drugs that can stand for each other, and the treatment path under which a chart names them."""

    path: str
    drugs: tuple[str, ...]


class Condition(NamedTuple):
    """A latent condition: how common it is, its ICD families (ICD-9 stem, ICD-10 stem, words), treatments and drugs."""

    weight: float
    path: str
    families: tuple[tuple[str, str, str], ...]
    areas: tuple[str, ...]
    drug_classes: tuple[str, ...]


def _drugs(path: str, names: str) -> DrugClass:
    return DrugClass(path, tuple(name.strip() for name in names.split(",")))


DRUG_CLASSES: dict[str, DrugClass] = {
    "simple analgesic": _drugs("neurologic|pain control|non-opioid analgesic", "acetaminophen, ibuprofen, ketorolac, naproxen, celecoxib"),
    "opioid": _drugs("neurologic|pain control|opioid", "morphine, hydromorphone, fentanyl, oxycodone, hydrocodone, tramadol, meperidine, methadone, remifentanil"),
    "antiemetic": _drugs("gastrointestinal|nausea|antiemetic", "ondansetron, metoclopramide, promethazine, prochlorperazine, droperidol, granisetron, aprepitant"),
    "acid suppression": _drugs("gastrointestinal|stress ulcer prevention|acid suppressant", "pantoprazole, famotidine, omeprazole, esomeprazole, ranitidine, lansoprazole, sucralfate"),
    "laxative": _drugs("gastrointestinal|bowel regimen|laxative", "docusate, senna, polyethylene glycol, bisacodyl, lactulose, magnesium hydroxide, psyllium"),
    "crystalloid": _drugs("renal|fluid therapy|crystalloid", "sodium chloride, lactated ringers, dextrose, plasma-lyte, hypertonic saline"),
    "electrolyte": _drugs("renal|electrolyte repletion|electrolyte", "potassium chloride, magnesium sulfate, calcium gluconate, sodium phosphate, potassium phosphate, calcium chloride"),
    "anticoagulant": _drugs("hematology|anticoagulation|heparins", "heparin, enoxaparin, dalteparin, fondaparinux, argatroban, bivalirudin"),
    "oral anticoagulant": _drugs("hematology|anticoagulation|oral agent", "warfarin, apixaban, rivaroxaban, dabigatran, edoxaban"),
    "antiplatelet": _drugs("cardiovascular|coronary disease|antiplatelet agent", "aspirin, clopidogrel, ticagrelor, prasugrel, eptifibatide, tirofiban, cangrelor"),
    "thrombolytic": _drugs("cardiovascular|coronary disease|thrombolytic", "alteplase, tenecteplase, reteplase"),
    "statin": _drugs("cardiovascular|lipids|statin", "atorvastatin, simvastatin, rosuvastatin, pravastatin, lovastatin, ezetimibe"),
    "beta blocker": _drugs("cardiovascular|rate control|beta blocker", "metoprolol, carvedilol, labetalol, atenolol, esmolol, propranolol, bisoprolol, nadolol"),
    "calcium channel blocker": _drugs("cardiovascular|hypertension|calcium channel blocker", "amlodipine, diltiazem, nicardipine, nifedipine, verapamil, clevidipine"),
    "renin angiotensin": _drugs("cardiovascular|hypertension|renin angiotensin blocker", "lisinopril, losartan, enalapril, captopril, valsartan, ramipril, benazepril, sacubitril-valsartan"),
    "vasodilator": _drugs("cardiovascular|hypertension|vasodilator", "hydralazine, nitroglycerin, isosorbide mononitrate, isosorbide dinitrate, nitroprusside, clonidine, minoxidil, doxazosin"),
    "loop diuretic": _drugs("renal|volume removal|loop diuretic", "furosemide, bumetanide, torsemide, ethacrynic acid"),
    "other diuretic": _drugs("renal|volume removal|other diuretic", "spironolactone, hydrochlorothiazide, metolazone, acetazolamide, chlorothiazide, mannitol, tolvaptan"),
    "antiarrhythmic": _drugs("cardiovascular|rhythm control|antiarrhythmic", "amiodarone, digoxin, adenosine, sotalol, lidocaine, procainamide, flecainide, dofetilide, ibutilide"),
    "vasopressor": _drugs("cardiovascular|circulatory support|vasopressor", "norepinephrine, phenylephrine, vasopressin, epinephrine, dopamine, ephedrine, midodrine"),
    "inotrope": _drugs("cardiovascular|circulatory support|inotrope", "dobutamine, milrinone, isoproterenol, levosimendan"),
    "sedative": _drugs("neurologic|sedation|infusion", "propofol, midazolam, dexmedetomidine, ketamine, etomidate"),
    "benzodiazepine": _drugs("neurologic|anxiety|benzodiazepine", "lorazepam, diazepam, alprazolam, clonazepam, chlordiazepoxide, temazepam"),
    "neuromuscular blocker": _drugs("pulmonary|airway|neuromuscular blocker", "rocuronium, vecuronium, succinylcholine, cisatracurium, neostigmine, sugammadex, glycopyrrolate"),
    "antipsychotic": _drugs("neurologic|delirium|antipsychotic", "haloperidol, quetiapine, olanzapine, risperidone, ziprasidone, aripiprazole"),
    "antidepressant": _drugs("neurologic|mood|antidepressant", "sertraline, escitalopram, trazodone, fluoxetine, mirtazapine, citalopram, venlafaxine, duloxetine, bupropion, amitriptyline"),
    "anticonvulsant": _drugs("neurologic|seizures|anticonvulsant", "levetiracetam, phenytoin, fosphenytoin, valproate, gabapentin, lacosamide, carbamazepine, lamotrigine, phenobarbital, topiramate, pregabalin"),
    "parkinson and dementia": _drugs("neurologic|movement and memory|agent", "carbidopa-levodopa, donepezil, memantine, ropinirole, benztropine"),
    "beta agonist": _drugs("pulmonary|bronchospasm|beta agonist", "albuterol, levalbuterol, ipratropium-albuterol, formoterol, salmeterol, terbutaline"),
    "inhaled anticholinergic": _drugs("pulmonary|bronchospasm|anticholinergic", "ipratropium, tiotropium, umeclidinium"),
    "inhaled steroid": _drugs("pulmonary|bronchospasm|inhaled steroid", "budesonide, fluticasone, fluticasone-salmeterol, beclomethasone, mometasone"),
    "systemic steroid": _drugs("endocrine|steroids|systemic steroid", "methylprednisolone, prednisone, hydrocortisone, dexamethasone, fludrocortisone, prednisolone"),
    "cough and secretion": _drugs("pulmonary|secretions|mucolytic", "guaifenesin, acetylcysteine, benzonatate, dornase alfa, codeine"),
    "insulin": _drugs("endocrine|glucose control|insulin", "insulin regular, insulin lispro, insulin aspart, insulin glargine, insulin detemir, insulin isophane"),
    "oral hypoglycemic": _drugs("endocrine|glucose control|oral agent", "metformin, glipizide, glyburide, sitagliptin, pioglitazone, glimepiride"),
    "hypoglycemia rescue": _drugs("endocrine|glucose control|rescue", "glucagon, glucose gel, diazoxide, octreotide"),
    "thyroid": _drugs("endocrine|thyroid|replacement or blockade", "levothyroxine, methimazole, propylthiouracil, liothyronine"),
    "penicillin": _drugs("infectious diseases|antibacterial|penicillin", "piperacillin-tazobactam, ampicillin-sulbactam, ampicillin, nafcillin, amoxicillin-clavulanate, amoxicillin, penicillin g, oxacillin"),
    "cephalosporin": _drugs("infectious diseases|antibacterial|cephalosporin", "ceftriaxone, cefazolin, cefepime, cephalexin, ceftazidime, cefuroxime, cefoxitin, ceftaroline"),
    "carbapenem": _drugs("infectious diseases|antibacterial|carbapenem", "meropenem, ertapenem, imipenem-cilastatin, doripenem, aztreonam"),
    "gram positive": _drugs("infectious diseases|antibacterial|gram positive cover", "vancomycin, linezolid, daptomycin, clindamycin, tigecycline"),
    "fluoroquinolone": _drugs("infectious diseases|antibacterial|fluoroquinolone", "levofloxacin, ciprofloxacin, moxifloxacin"),
    "macrolide and tetracycline": _drugs("infectious diseases|antibacterial|atypical cover", "azithromycin, doxycycline, erythromycin, clarithromycin, minocycline"),
    "aminoglycoside and sulfa": _drugs("infectious diseases|antibacterial|aminoglycoside or sulfa", "gentamicin, tobramycin, amikacin, trimethoprim-sulfamethoxazole, nitrofurantoin, colistimethate"),
    "anaerobe": _drugs("infectious diseases|antibacterial|anaerobic cover", "metronidazole, rifaximin, fidaxomicin"),
    "antifungal": _drugs("infectious diseases|antifungal|agent", "fluconazole, micafungin, nystatin, voriconazole, caspofungin, amphotericin b"),
    "antiviral": _drugs("infectious diseases|antiviral|agent", "oseltamivir, acyclovir, valacyclovir, ganciclovir, tenofovir-emtricitabine, entecavir"),
    "immunosuppressant": _drugs("transplant|immunosuppression|agent", "tacrolimus, mycophenolate, cyclosporine, azathioprine, sirolimus, methotrexate, hydroxychloroquine"),
    "chemotherapy support": _drugs("oncology|supportive care|agent", "filgrastim, allopurinol, leucovorin, rasburicase, cyclophosphamide, cytarabine, tamoxifen, megestrol"),
    "blood and clotting": _drugs("hematology|bleeding|reversal or clotting agent", "phytonadione, tranexamic acid, protamine, aminocaproic acid, desmopressin, prothrombin complex, antihemophilic factor"),
    "iron and erythropoiesis": _drugs("hematology|anemia|iron or stimulating agent", "ferrous sulfate, iron sucrose, epoetin alfa, darbepoetin, cyanocobalamin, folic acid"),
    "vitamin": _drugs("gastrointestinal|nutrition|vitamin", "multivitamin, thiamine, ascorbic acid, cholecalciferol, pyridoxine, zinc sulfate, vitamin e"),
    "nutrition": _drugs("gastrointestinal|nutrition|parenteral", "amino acids, fat emulsion, enteral formula, trace elements, omega-3 fatty acids"),
    "renal failure": _drugs("renal|chronic kidney disease|agent", "sevelamer, calcium acetate, calcitriol, sodium bicarbonate, sodium polystyrene, cinacalcet, lanthanum"),
    "liver": _drugs("gastrointestinal|liver failure|agent", "albumin human, ursodiol, octreotide acetate, terlipressin, cholestyramine"),
    "antidiarrheal and spasm": _drugs("gastrointestinal|motility|agent", "loperamide, diphenoxylate-atropine, simethicone, dicyclomine, hyoscyamine, lactobacillus"),
    "antidote": _drugs("toxicology|antidote|agent", "naloxone, flumazenil, acetylcysteine infusion, fomepizole, activated charcoal, atropine, physostigmine, glucarpidase"),
    "addiction": _drugs("toxicology|withdrawal|agent", "nicotine, buprenorphine-naloxone, phenobarbital taper, disulfiram, varenicline, clonidine taper"),
    "antihistamine": _drugs("pulmonary|allergy|antihistamine", "diphenhydramine, hydroxyzine, loratadine, cetirizine, famotidine infusion"),
    "urology": _drugs("genitourinary|outflow|agent", "tamsulosin, finasteride, oxybutynin, tolterodine, phenazopyridine, bethanechol"),
    "topical and eye": _drugs("general|topical care|agent", "mupirocin, chlorhexidine, artificial tears, bacitracin, silver sulfadiazine, zinc oxide, lidocaine patch, latanoprost, timolol, petrolatum"),
    "sleep": _drugs("neurologic|sleep|hypnotic", "zolpidem, melatonin, ramelteon, eszopiclone"),
    "muscle relaxant": _drugs("neurologic|spasticity|muscle relaxant", "cyclobenzaprine, baclofen, methocarbamol, tizanidine, dantrolene"),
    "vaccine": _drugs("general|prevention|vaccine", "influenza vaccine, pneumococcal vaccine, tetanus toxoid"),
    "anesthetic": _drugs("surgery|perioperative|anesthetic", "bupivacaine, ropivacaine, sevoflurane, lidocaine-epinephrine, cefazolin irrigation, thrombin topical"),
    "gout and joint": _drugs("general|joint|agent", "colchicine, febuxostat, probenecid, alendronate, raloxifene"),
    "pulmonary vascular": _drugs("pulmonary|pulmonary hypertension|agent", "sildenafil, epoprostenol, bosentan, treprostinil, nitric oxide"),
}  # fmt: skip

EVERYONE = (
    "simple analgesic",
    "antiemetic",
    "acid suppression",
    "crystalloid",
    "electrolyte",
    "anticoagulant",
    "laxative",
    "insulin",
    "topical and eye",
)
"""Classes of the order sets that every hospital has in some form."""


def _condition(weight: float, path: str, families: str, areas: str, drug_classes: str) -> Condition:
    def parts(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(","))

    triples = tuple((f.split()[0], f.split()[1], " ".join(f.split()[2:])) for f in parts(families))
    return Condition(weight, path, triples, parts(areas), parts(drug_classes))


CONDITIONS: tuple[Condition, ...] = (
    _condition(7, "infectious diseases|systemic", "038 A41 sepsis, 995 R65 severe sepsis, 790 R78 bacteremia", "infectious diseases, cardiovascular", "penicillin, gram positive, vasopressor, crystalloid, carbapenem"),
    _condition(6, "cardiovascular|heart failure", "428 I50 congestive heart failure, 425 I42 cardiomyopathy, 402 I11 hypertensive heart disease", "cardiovascular, pulmonary", "loop diuretic, renin angiotensin, beta blocker, other diuretic, inotrope"),
    _condition(6, "cardiovascular|acute coronary syndrome", "410 I21 acute myocardial infarction, 411 I24 unstable angina, 786 R07 chest pain", "cardiovascular", "antiplatelet, statin, beta blocker, vasodilator, anticoagulant"),
    _condition(6, "pulmonary|respiratory failure", "518 J96 acute respiratory failure, 799 R09 hypoxemia, 519 J95 airway complication", "pulmonary", "sedative, beta agonist, opioid, neuromuscular blocker"),
    _condition(5, "pulmonary|pneumonia", "486 J18 pneumonia, 482 J15 bacterial pneumonia, 507 J69 aspiration pneumonitis", "pulmonary, infectious diseases", "cephalosporin, macrolide and tetracycline, gram positive, fluoroquinolone, cough and secretion"),
    _condition(4, "pulmonary|obstructive disease", "491 J44 chronic obstructive disease with exacerbation, 492 J43 emphysema, 496 J98 chronic airway obstruction", "pulmonary", "beta agonist, inhaled anticholinergic, systemic steroid, inhaled steroid"),
    _condition(2, "pulmonary|asthma", "493 J45 asthma, 477 J30 allergic airway", "pulmonary", "beta agonist, systemic steroid, inhaled steroid, antihistamine"),
    _condition(6, "cardiovascular|hypertension", "401 I10 essential hypertension, 403 I12 hypertensive kidney disease, 405 I15 secondary hypertension", "cardiovascular", "renin angiotensin, calcium channel blocker, vasodilator, beta blocker"),
    _condition(5, "cardiovascular|atrial arrhythmia", "427 I48 atrial fibrillation, 785 R00 palpitations", "cardiovascular", "antiarrhythmic, beta blocker, oral anticoagulant, calcium channel blocker"),
    _condition(2, "cardiovascular|ventricular arrhythmia", "426 I47 ventricular tachycardia, 429 I49 conduction disorder", "cardiovascular", "antiarrhythmic, electrolyte, beta blocker"),
    _condition(2, "cardiovascular|cardiac arrest", "427.5 I46 cardiac arrest, 348 G93 anoxic brain injury", "cardiovascular, neurologic", "vasopressor, sedative, antiarrhythmic, neuromuscular blocker"),
    _condition(3, "cardiovascular|shock", "785.5 R57 shock, 458 I95 hypotension", "cardiovascular", "vasopressor, inotrope, crystalloid, systemic steroid"),
    _condition(5, "endocrine|diabetes", "250 E11 type 2 diabetes, 249 E13 secondary diabetes, 357 E08 diabetic complication", "endocrine", "insulin, oral hypoglycemic, hypoglycemia rescue"),
    _condition(2, "endocrine|diabetic ketoacidosis", "250.1 E10 diabetic ketoacidosis, 276.2 E87 acidosis", "endocrine, renal", "insulin, crystalloid, electrolyte, hypoglycemia rescue"),
    _condition(2, "endocrine|thyroid disease", "244 E03 hypothyroidism, 242 E05 thyrotoxicosis", "endocrine", "thyroid, beta blocker"),
    _condition(1, "endocrine|adrenal insufficiency", "255 E27 adrenal insufficiency, 253 E23 pituitary disorder", "endocrine", "systemic steroid, thyroid"),
    _condition(5, "renal|acute kidney injury", "584 N17 acute kidney failure, 788 R34 oliguria", "renal", "crystalloid, renal failure, electrolyte"),
    _condition(4, "renal|chronic kidney disease", "585 N18 chronic kidney disease, 588 N25 renal osteodystrophy", "renal", "renal failure, iron and erythropoiesis, loop diuretic"),
    _condition(4, "renal|electrolyte disorder", "276 E86 volume depletion, 275 E83 mineral disorder, 276.8 E88 potassium disorder", "renal", "electrolyte, crystalloid, renal failure"),
    _condition(2, "genitourinary|urinary tract infection", "599 N39 urinary tract infection, 590 N10 pyelonephritis", "infectious diseases, renal", "cephalosporin, fluoroquinolone, urology, aminoglycoside and sulfa"),
    _condition(4, "gastrointestinal|upper bleeding", "578 K92 gastrointestinal hemorrhage, 531 K25 gastric ulcer, 532 K26 duodenal ulcer", "gastrointestinal, hematology", "acid suppression, blood and clotting, liver"),
    _condition(2, "gastrointestinal|lower bleeding", "562 K57 diverticular disease, 569 K62 rectal hemorrhage", "gastrointestinal, hematology", "acid suppression, iron and erythropoiesis, blood and clotting"),
    _condition(2, "gastrointestinal|cirrhosis", "571 K74 cirrhosis, 572 K72 hepatic encephalopathy, 456 I85 esophageal varices", "gastrointestinal", "liver, laxative, other diuretic, vitamin, anaerobe"),
    _condition(2, "gastrointestinal|pancreatitis", "577 K85 acute pancreatitis, 574 K80 gallstones", "gastrointestinal", "opioid, crystalloid, antiemetic, carbapenem"),
    _condition(2, "gastrointestinal|bowel obstruction", "560 K56 intestinal obstruction, 557 K55 bowel ischemia", "gastrointestinal, surgery", "opioid, antiemetic, anaerobe, nutrition"),
    _condition(1.5, "gastrointestinal|clostridial colitis", "008 A04 clostridial colitis, 009 A09 infectious diarrhea", "gastrointestinal, infectious diseases", "anaerobe, gram positive, antidiarrheal and spasm"),
    _condition(1.5, "gastrointestinal|inflammatory bowel disease", "555 K50 regional enteritis, 556 K51 ulcerative colitis", "gastrointestinal", "systemic steroid, immunosuppressant, antidiarrheal and spasm"),
    _condition(4, "neurologic|ischemic stroke", "434 I63 cerebral infarction, 435 G45 transient ischemia, 433 I65 precerebral stenosis", "neurologic", "antiplatelet, statin, thrombolytic, calcium channel blocker"),
    _condition(2, "neurologic|intracranial hemorrhage", "431 I61 intracerebral hemorrhage, 430 I60 subarachnoid hemorrhage, 432 I62 subdural hemorrhage", "neurologic", "anticonvulsant, calcium channel blocker, other diuretic"),
    _condition(3, "neurologic|seizures", "345 G40 epilepsy, 780.3 R56 seizures", "neurologic", "anticonvulsant, benzodiazepine"),
    _condition(3, "neurologic|altered mental status", "780 R41 altered mental status, 293 F05 delirium, 349 G92 encephalopathy", "neurologic", "antipsychotic, vitamin, sleep"),
    _condition(2, "neurologic|dementia", "294 F03 dementia, 331 G30 degenerative brain disease, 332 G20 movement disorder", "neurologic", "parkinson and dementia, antipsychotic, antidepressant"),
    _condition(2, "neurologic|mood disorder", "311 F32 depression, 300 F41 anxiety, 296 F31 bipolar disorder", "neurologic", "antidepressant, benzodiazepine, antipsychotic"),
    _condition(1, "neurologic|neuromuscular disease", "358 G70 myasthenia, 340 G35 demyelinating disease", "neurologic", "muscle relaxant, systemic steroid, immunosuppressant"),
    _condition(2, "toxicology|overdose", "977 T50 drug overdose, 965 T40 opioid poisoning, 969 T43 psychotropic poisoning", "toxicology", "antidote, benzodiazepine, crystalloid"),
    _condition(2, "toxicology|alcohol withdrawal", "291 F10 alcohol withdrawal, 303 K70 alcohol dependence", "toxicology, neurologic", "benzodiazepine, vitamin, addiction"),
    _condition(2, "toxicology|tobacco and other use", "305 F17 tobacco use, 304 F11 opioid dependence", "toxicology", "addiction, sleep"),
    _condition(2.5, "trauma|chest and abdomen", "807 S22 rib fractures, 860 S27 traumatic pneumothorax, 865 S36 splenic injury", "trauma, surgery", "opioid, simple analgesic, muscle relaxant, vaccine"),
    _condition(2, "trauma|head injury", "852 S06 traumatic brain injury, 801 S02 skull fracture", "trauma, neurologic", "anticonvulsant, other diuretic, sedative"),
    _condition(1.5, "trauma|long bones and pelvis", "820 S72 femur fracture, 808 S32 pelvic fracture, 823 S82 leg fracture", "trauma, surgery", "opioid, anticoagulant, gout and joint, anesthetic"),
    _condition(1, "burns|burns", "948 T31 burns of body surface, 941 T20 burn of head", "burns", "opioid, topical and eye, nutrition, crystalloid"),
    _condition(4, "cardiovascular|after cardiac surgery", "414 I25 coronary atherosclerosis after bypass, 424 I35 valve disease after repair", "surgery, cardiovascular", "antiplatelet, beta blocker, vasopressor, cephalosporin, blood and clotting"),
    _condition(2, "cardiovascular|aortic disease", "441 I71 aortic aneurysm, 440 I70 peripheral atherosclerosis", "surgery, cardiovascular", "beta blocker, statin, vasodilator, anesthetic"),
    _condition(3, "surgery|after abdominal surgery", "998 K91 postoperative state, 553 K43 abdominal hernia, 540 K35 appendicitis", "surgery, gastrointestinal", "opioid, antiemetic, cephalosporin, anesthetic, anaerobe"),
    _condition(2, "surgery|after spine or joint surgery", "724 M54 spinal disorder, 715 M17 joint replacement", "surgery", "opioid, muscle relaxant, cephalosporin, anesthetic"),
    _condition(2, "hematology|venous thromboembolism", "415 I26 pulmonary embolism, 453 I82 deep vein thrombosis", "hematology, pulmonary", "anticoagulant, oral anticoagulant, thrombolytic"),
    _condition(4, "hematology|anemia", "285 D64 anemia, 280 D50 iron deficiency", "hematology", "iron and erythropoiesis, vitamin"),
    _condition(2, "hematology|thrombocytopenia", "287 D69 thrombocytopenia, 286 D68 coagulopathy", "hematology", "blood and clotting, systemic steroid"),
    _condition(2, "oncology|solid tumor", "162 C34 lung cancer, 153 C18 colon cancer, 198 C79 metastatic disease", "oncology", "opioid, chemotherapy support, antiemetic, systemic steroid"),
    _condition(1, "oncology|hematologic malignancy", "202 C85 lymphoma, 205 C92 leukemia, 288 D70 neutropenia", "oncology, hematology", "chemotherapy support, antifungal, antiviral, carbapenem"),
    _condition(1, "transplant|organ transplant", "996 T86 complication of transplant, V42 Z94 transplanted organ", "transplant", "immunosuppressant, antiviral, systemic steroid, aminoglycoside and sulfa"),
    _condition(2, "infectious diseases|skin and soft tissue", "682 L03 cellulitis, 707 L89 pressure ulcer, 728 M72 necrotizing infection", "infectious diseases, surgery", "gram positive, penicillin, topical and eye"),
    _condition(1, "infectious diseases|meningitis and endocarditis", "320 G00 meningitis, 421 I33 endocarditis", "infectious diseases, neurologic", "cephalosporin, gram positive, antiviral"),
    _condition(1, "infectious diseases|viral and fungal", "487 J10 influenza, 112 B37 candidiasis, 042 B20 immunodeficiency virus", "infectious diseases", "antiviral, antifungal, aminoglycoside and sulfa"),
    _condition(1.5, "pulmonary|pleural and vascular", "511 J90 pleural effusion, 512 J93 pneumothorax, 416 I27 pulmonary hypertension", "pulmonary", "pulmonary vascular, loop diuretic, opioid"),
    _condition(2, "general|elderly comorbidity", "600 N40 prostate enlargement, 272 E78 lipid disorder, 530 K21 reflux", "general", "statin, urology, acid suppression, gout and joint"),
    _condition(1, "general|rheumatologic", "274 M10 gout, 714 M06 rheumatoid arthritis, 710 M32 lupus", "general", "gout and joint, immunosuppressant, systemic steroid"),
    _condition(1, "obstetrics|peripartum", "642 O14 preeclampsia, 666 O72 postpartum hemorrhage", "general, hematology", "vasodilator, electrolyte, blood and clotting"),
)  # fmt: skip

TREATMENTS: dict[str, str] = {
    "cardiovascular": "monitoring by arterial line; central venous catheter; pulmonary artery catheter; transthoracic echocardiogram; transesophageal echocardiogram; coronary angiogram; stent to a coronary artery; temporary pacing wire; permanent pacemaker; cardioversion; defibrillation; intra-aortic balloon; serial enzymes; telemetry; cardiology opinion; compression stockings",
    "pulmonary": "invasive ventilation; noninvasive ventilation; oxygen by nasal cannula; oxygen by mask; high flow oxygen; extubation trial; weaning trial; chest physiotherapy; bronchoscopy; thoracentesis; chest tube; tracheostomy; arterial blood gas; chest radiograph; chest tomography; lung opinion",
    "renal": "continuous hemofiltration; intermittent hemodialysis; dialysis catheter; urinary catheter; strict fluid balance; renal ultrasound; urine studies; fluid restriction; kidney opinion; bladder scan; peritoneal dialysis; nephrostomy",
    "neurologic": "neurological checks; head tomography; brain magnetic resonance; electroencephalogram; intracranial pressure monitor; ventricular drain; lumbar puncture; swallow study; speech therapy; neurology opinion; neurosurgery opinion; carotid ultrasound; craniotomy; restraint review",
    "gastrointestinal": "upper endoscopy; colonoscopy; nasogastric tube; enteral feeding; parenteral feeding; nothing by mouth; abdominal tomography; abdominal ultrasound; paracentesis; biliary drainage; feeding tube placement; gastroenterology opinion; diet advance; stool studies",
    "infectious diseases": "blood cultures; urine cultures; sputum cultures; wound cultures; contact isolation; droplet isolation; line removal; abscess drainage; infectious disease opinion; lactate follow-up; source imaging; wound debridement",
    "endocrine": "fingerstick glucose; infusion protocol for glucose; endocrine opinion; ketone testing; diabetic diet; thyroid studies; cortisol testing; diabetes education",
    "hematology": "transfusion of red cells; transfusion of plasma; transfusion of platelets; cryoprecipitate; vena cava filter; venous ultrasound; pneumatic compression; coagulation studies; hematology opinion; anemia studies; exchange transfusion",
    "toxicology": "withdrawal scale; toxicology screen; poison center contact; psychiatric opinion; sitter at bedside; gastric lavage; detoxification plan; addiction counselling",
    "trauma": "cervical collar; log roll precautions; fracture splint; trauma series; orthopedic opinion; external fixation; focused abdominal sonography; tertiary survey",
    "surgery": "exploratory laparotomy; wound dressing; drain care; postoperative observation; surgery opinion; epidural catheter; patient controlled analgesia; incentive spirometry; early walking; vacuum dressing; vascular repair; anesthesia handover",
    "oncology": "oncology opinion; radiation therapy; chemotherapy cycle; bone marrow biopsy; neutropenic precautions; palliative opinion; tumor lysis monitoring",
    "transplant": "transplant opinion; drug level monitoring; rejection biopsy; donor assessment; protective isolation",
    "burns": "burn dressing; burn debridement; skin graft; fluid formula; escharotomy; hydrotherapy",
    "general": "physical therapy; occupational therapy; nutrition opinion; social work; family meeting; code status discussion; pressure relief; fall precautions; skin care; case management; pharmacy review; spiritual care; pain assessment; vaccination review; discharge planning",
}  # fmt: skip

TREATMENT_GROUPS = ("assessment", "bedside care", "intervention", "follow-up")
"""The middle word of a treatment that names no drug: charts file the same treatment under several."""

FORMS = (
    ("MG PO TABS", "PO"),
    ("MG/ML IV SOLN", "IV"),
    ("MG IV SOLR", "IVPB"),
    ("MG PO CAPS", "PO"),
    ("MG/5ML PO LIQD", "PO"),
    ("UNIT/ML SC SOLN", "SC"),
)
"""Endings of a drug's name, with the route that goes with them."""
