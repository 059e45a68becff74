from pathlib import Path
from pipeline.find.scan import scan, root_of
from pipeline.find.selection import Selection
from pipeline.report.write import check_place
from PIL import Image
d=Path('/tmp/rv/g'); Image.new('RGB',(8,8)).save(d/'a.jpg')
f=scan([d/'a.jpg'],Selection(),None)
roots=getattr(f,'roots',None); print(roots)
check_place(d/'report', d/'t.parquet',[root_of(d/'a.jpg')]); print('before the run: accepted')
try: check_place(d/'report', d/'t.parquet',roots)
except Exception as e: print('after the run:',type(e).__name__,e)
